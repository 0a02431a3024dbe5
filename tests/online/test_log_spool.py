"""What a test reads of raw logs: columns give what the exact parser gives, and a later look reads what is new."""

import stat
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.online import kept_spools, launch, promotion
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.assignment import assign, staff_key
from flywheel_tasks.online.guardrails import check
from flywheel_tasks.online.kept_spools import FOLDER
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.privacy.forget import drop_kept
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.experiment_records import Override
from flywheel_tasks.traffic.events import EventError, parse_line
from tests.dags.small import ab_events, write_logs
from tests.online.conftest import approve
from tests.online.people import make_plan
from tests.online.spooled import spooled
from tests.online.test_launch import run_launch
from tests.traffic.sample import exposure, message, signal

PLAN = make_plan()
STAFF = (Override(user=staff_key(PLAN.salt, "u3"), arm=None),)


def reply(number: int, **changes: Any) -> dict[str, Any]:
    return message(number, "assistant", number - 1, **changes)


EVENTS = [
    message(1, "user", None, user_id="u1"),
    message(2, "assistant", None, model=None),  # a greeting
    message(3, "assistant", None, model=""),
    reply(4, latency_ms=12.6),
    reply(5, latency_ms="fast"),
    reply(6, latency_ms=True, refused_model="g0001"),
    reply(7, latency_ms=-1, refused_model=5),
    reply(8, fallback="failed", latency_ms=3),
    reply(9, fallback="loading", refused_model="base"),
    reply(10, fallback=7, latency_ms=20),
    message(11, "user", None, latency_ms=7, refused_model="g0001"),  # not a reply's
    message(12, "user", None, text="\U0001f600 \u0000 {[", user_id="u2"),
    signal(1, 4),
    signal(2, 4, signal="thumb_down", user_id="u2"),
    signal(3, 4, signal="nothing that is known"),
    *(
        exposure(event_id=f"x{n}-{arm}", user_id=f"u{n}", experiment="g0001", arm=arm)
        for n in range(5)
        for arm in ("control", "candidate", "neither")
    ),
    exposure(event_id="other", experiment="g0002"),
    message(13, "user", None, time="20261102T101500+0100"),
    reply(14, time="20261102T101500+0100", latency_ms=9),
    message(15, "user", None, time="2026-11-02T10:15:00"),
    message(16, "user", None, user_id=5),
    message(17, "user", None, text="long" * 400_000),
]
LINES = [*map(orjson.dumps, EVENTS), b"", b"{nonsense", b"null", b'"\xff"', b"{}", b"[" * 3000]


def one_by_one(lines: list[bytes], most: int) -> tuple[list[tuple[Any, ...]], int, int]:
    """Kind, user, time and what else a line says, by the exact parser; lines that are unreadable; staff's exposures."""
    found: list[tuple[Any, ...]] = []
    unreadable = staff = 0
    for line in lines:
        try:
            event = parse_line(line) if len(line) <= most else None
        except EventError:
            event = None
        if event is None:
            unreadable += 1
            continue
        row = event.row
        who = (row.get("user_id"), row["time"].replace(tzinfo=None), row["source"])
        if event.type == "signal":
            found.append((row["signal"], *who, None, None, None))
        elif event.type == "exposure" and row["experiment"] == PLAN.experiment:
            if staff_key(PLAN.salt, row["user_id"]) == STAFF[0].user:
                staff += 1
                continue
            right = assign(PLAN.model_dump(mode="json"), row["user_id"]) == row["arm"]
            found.append(("exposure", *who, row["arm"], right, None))
        elif event.type == "message" and row["role"] == "user":
            found.append(("message", *who, None, None, None))
        elif event.type == "message" and not (row["parent_id"] or row["model"]):
            found.append(("greeting", *who, None, None, None))
        elif event.type == "message":
            found += [(kind, *who, None, None, ms) for kind, ms in beside(orjson.loads(line))]
    return found, unreadable, staff


def beside(event: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    if isinstance(event.get("fallback"), str):
        return [("reply", None), *([("fallback", None)] if event["fallback"] != "loading" else [])]
    took = event.get("latency_ms")
    ms = round(took) if type(took) in (int, float) and took >= 0 else None
    return [("reply", ms), *([("safety_violation", None)] if type(event.get("refused_model")) is str else [])]


@settings(suppress_health_check=list(HealthCheck), max_examples=60)
@given(
    lines=st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=20)), max_size=40, min_size=1),
    small=st.booleans(),
)
def test_columns_give_what_the_exact_parser_gives(lines: list[bytes], small: bool) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr("flywheel_tasks.traffic.columns._LEAST_LINES", 2)
        reader, rows = spooled(lines, PLAN, STAFF)
    expected, unreadable, staff = one_by_one(lines, 1 << 20)
    names = ("kind", "time", "source", "arm", "assigned", "milliseconds")
    got = [tuple(row[name] for name in names) for row in rows]
    assert got == [(kind, *rest) for kind, _, *rest in expected]
    assert reader.counts() == {"rows": len(expected), "unreadable": unreadable, "staff": staff}
    users = {(row["user"], who) for row, (_, who, *_) in zip(rows, expected, strict=True)}
    assert len(users) == len({key for key, _ in users}) == len({who for _, who in users})


@pytest.mark.parametrize("name", ["refused_model", "fallback"])
def test_a_model_whose_name_looks_like_a_date_is_a_text(name: str) -> None:
    """Arrow would read a column of such names as times."""
    events = [
        reply(n, **{name: "2026-11-02", "event_id": f"d{n}", "latency_ms": 5}) for n in range(1, 60)
    ] * 3
    _, rows = spooled(events, PLAN)
    kind = {"refused_model": "safety_violation", "fallback": "fallback"}[name]
    assert [row["kind"] for row in rows] == ["reply", kind] * len(events)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize("number", [pa.int16(), pa.float32(), pa.int64()], ids=str)
def test_columns_of_parquet_logs_may_be_of_any_type_of_text_and_number(
    root: Path, text: pa.DataType, number: pa.DataType
) -> None:
    said = [reply(n, event_id=f"r{n}") for n in range(4)]
    names = {key: [event[key] for event in said] for key in said[0]}
    names |= {
        "refused_model": pa.array(["g0001", None, None, None]).cast(text),
        "fallback": pa.array([None, "failed", "loading", None]).cast(text),
        "latency_ms": pa.array([7, 8, 9, 10], number),
        "of the team's own": pa.array(["a", "b", "c", "d"]).cast(text),
    }
    folder = root / "data/logs/date=2026-11-02"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(names), folder / "part-000.parquet")
    with open_events(load_settings(root / "params.yaml"), root, PLAN) as found:
        rows = found.activity.select("kind", "milliseconds").to_pyarrow().to_pylist()
    expected = [
        ("reply", 7),
        ("safety_violation", None),
        ("reply", None),
        ("fallback", None),
        ("reply", None),
    ]
    assert sorted(map(repr, (tuple(row.values()) for row in rows))) == sorted(
        map(repr, [*expected, ("reply", 10)])
    )


def test_parquet_logs_say_what_json_lines_say(root: Path) -> None:
    events = [
        e | ({"latency_ms": 40} if e.get("role") == "assistant" else {})
        for e in ab_events(PLAN.model_dump(mode="json"), 50)
    ]
    settings = load_settings(root / "params.yaml")

    def read() -> list[dict[str, Any]]:
        with open_events(settings, root, PLAN) as found:
            assert found.description["unreadable_lines"] == 0
            rows = found.activity.select("time", "kind", "milliseconds").to_pyarrow().to_pylist()
            rows += found.exposures.select("time", "arm", "assigned").to_pyarrow().to_pylist()
        return sorted(rows, key=repr)

    write_logs(root, "date=2026-11-09", events)
    lines = read()
    for file in (root / "data/logs").rglob("*.jsonl"):
        file.unlink()
    names = {name: [event.get(name) for event in events] for name in set().union(*events)}
    pq.write_table(pa.table(names), root / "data/logs/date=2026-11-09/part-000.parquet")
    assert read() == lines
    assert {row.get("milliseconds") for row in lines} == {None, 40}


@pytest.fixture
def started(root: Path) -> Any:
    """A running test with two days of logs."""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", "source: files", 1))
    approve(root)
    run_launch(root)
    experiment = launch.start(root, by="ada")
    plan = experiment.plan.model_dump(mode="json")
    for day in (0, 1):
        write_logs(
            root, day_of(experiment, day), ab_events(plan, 200, start=experiment.started_at, name=f"{day}")
        )
    return experiment


def day_of(experiment: Any, day: int) -> str:
    return f"date={(experiment.started_at + timedelta(days=day)).date()}"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the partitions whose lines were read, as they are."""
    names: list[str] = []
    plain = kept_spools.partition_blocks

    def blocks(location: str, root: Path, partition: Mapping[str, Any], **more: Any) -> Any:
        names.append(partition["path"].split("/")[0])
        return plain(location, root, partition, **more)

    monkeypatch.setattr(kept_spools, "partition_blocks", blocks)
    return names


def test_a_later_look_reads_what_is_new(root: Path, started: Any, read: list[str]) -> None:
    first, second = day_of(started, 0), day_of(started, 1)
    moment = started.started_at + timedelta(hours=3)
    plan = started.plan.model_dump(mode="json")
    look = check(root, "g0001", "ada", moment)
    assert sorted(read) == [first, second]
    assert check(root, "g0001", "ada", moment).digest == look.digest
    assert sorted(read) == [first, second], "nothing was read again"
    write_logs(root, second, ab_events(plan, 300, start=started.started_at, name="more"))
    read.clear()
    later = check(root, "g0001", "ada", moment)
    assert (read, later.digest == look.digest) == ([second], False)
    read.clear()
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("cache_bytes: 4000000000", "cache_bytes: 0"))
    assert check(root, "g0001", "ada", moment).digest == later.digest, "as without anything kept"
    assert sorted(read) == [first, second]


def test_who_becomes_staff_does_not_count_in_what_was_kept(root: Path, started: Any, read: list[str]) -> None:
    settings = load_settings(root / "params.yaml")
    user = next(
        f"user-{n:04d}" for n in range(200) if assign(started.plan.model_dump(mode="json"), f"user-{n:04d}")
    )
    staff = (Override(user=staff_key(started.plan.salt, user), arm=None),)
    counted = []
    for overrides in ((), staff, ()):
        with open_events(settings, root, started.plan, overrides) as found:
            counted.append((found.exposures.count().execute(), found.description["staff_exposures"]))
    assert counted[0] == counted[2]
    assert counted[1] == (counted[0][0] - 2, 2)


def kept_files(root: Path) -> list[Path]:
    return [path for path in (root / FOLDER).rglob("*") if path.is_file()]


def test_what_is_kept_names_nobody(root: Path, started: Any) -> None:
    check(root, "g0001", "ada", started.started_at)
    files = kept_files(root)
    assert {path.name for path in files} == {"rows.parquet", "rows.json", "secret"}
    assert not any(b"user-0" in path.read_bytes() for path in files)
    names = {value for path in files if path.suffix == ".parquet" for value in pq.read_schema(path).names}
    assert not names & {"user_id", "event_id", "text"}
    secret = next(path for path in files if path.name == "secret")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["rows.parquet", "rows.json", "secret"])
@pytest.mark.parametrize("left", [None, b"", b'{"rows": 1}'])
def test_a_damaged_entry_is_made_again(
    root: Path, started: Any, read: list[str], name: str, left: bytes | None
) -> None:
    """As a kill or a power cut leaves it."""
    look = check(root, "g0001", "ada", started.started_at)
    damaged = next(path for path in kept_files(root) if path.name == name)
    if left is None:
        damaged.unlink()
    else:
        damaged.write_bytes(left)
    read.clear()
    assert check(root, "g0001", "ada", started.started_at).digest == look.digest
    assert len(read) == (2 if name == "secret" else 1)
    assert {path.name for path in kept_files(root)} == {"rows.parquet", "rows.json", "secret"}
    assert len(kept_files(root)) == 5
    assert len((next((root / FOLDER).glob("*")) / "secret").read_bytes()) == 32


def test_of_a_file_that_changed_only_what_it_is_now_is_kept(root: Path, started: Any) -> None:
    """Whoever is forgotten goes from the raw logs, and must not stay here."""
    check(root, "g0001", "ada", started.started_at)
    files = kept_files(root)
    plan = started.plan.model_dump(mode="json")
    write_logs(root, day_of(started, 0), ab_events(plan, 100, start=started.started_at, name="0"))
    check(root, "g0001", "ada", started.started_at)
    now = kept_files(root)
    assert len(now) == len(files)
    assert len(set(now) - set(files)) == 2


def test_a_look_during_which_the_test_ends_keeps_nothing(
    root: Path, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = kept_spools.partition_blocks

    def ends(*given: Any, **more: Any) -> Any:
        kept_spools.drop_others(root, [])
        return plain(*given, **more)

    monkeypatch.setattr(kept_spools, "partition_blocks", ends)
    check(root, "g0001", "ada", started.started_at)
    assert not kept_files(root)


def test_logs_that_change_while_they_are_read_make_a_look_unknown(
    root: Path, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = kept_spools.partition_blocks

    def changed(location: str, root: Path, partition: Mapping[str, Any], **more: Any) -> Any:
        path = root / location / partition["path"]
        path.write_bytes(path.read_bytes() + b"{}\n")
        return plain(location, root, partition, **more)

    monkeypatch.setattr(kept_spools, "partition_blocks", changed)
    found = check(root, "g0001", "ada", started.started_at)
    assert found.result == "unknown"
    assert "changed since it was pinned" in found.reasons[0]
    assert {path.name for path in kept_files(root)} == {"secret"}


@pytest.mark.parametrize("end", ["rolled back", "rolled back after a kill", "another look", "forgotten"])
def test_what_was_kept_goes_with_the_test_and_with_who_is_forgotten(
    root: Path, started: Any, end: str
) -> None:
    check(root, "g0001", "ada", started.started_at)
    assert kept_files(root)
    if end == "rolled back after a kill":
        registry_of(root).rollback("g0001", "no", by="ada")
    if end.startswith("rolled back"):
        promotion.rollback(root, "g0001", "no", by="ada")
    elif end == "another look":  # the test ended on another machine
        kept_spools.drop_others(root, [])
    else:
        drop_kept(root)
    assert not kept_files(root)
