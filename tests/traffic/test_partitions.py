"""The stage against ingestion line by line: any events, in any order, split and cut anywhere."""

import gzip
import shutil
import threading
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.settings import Ingest
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.traffic import merge, partition, repeats
from flywheel_tasks.traffic.identity import DEMO_KEY, Identity, UserKey
from flywheel_tasks.traffic.ingest import Ingestion
from flywheel_tasks.traffic.logs import LogsError, open_partition, pin_logs
from flywheel_tasks.traffic.schemas import TABLES
from tests.traffic.line_by_line import Ingestion as LineByLine
from tests.traffic.sample import card, events, exposure, line, message, signal, write_log

KEY = UserKey(DEMO_KEY)
WHO = Identity(KEY, frozenset([KEY.hashed("forgotten")]))


def settled(**changes) -> Ingest:
    return Ingest(**{"max_line_bytes": 500, "rename": {}, "cache_bytes": 10**9, **changes})


def ingest(root: Path, cache: Path | None = None, name: str = "out", **changes):
    pinned = pin_logs("data/logs", root)
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    ingestion = Ingestion("data/logs", root, settled(**changes), WHO, scratch, cache)
    metrics = ingestion.run(pinned["partitions"], root / name)
    return metrics, {path.stem: read_rows(path) for path in (root / name).iterdir()}, ingestion.parsed


def line_by_line(root: Path, identity: Identity = WHO):
    plain = LineByLine(identity)
    pinned = pin_logs("data/logs", root)
    for item in pinned["partitions"]:
        for raw in open_partition("data/logs", root, item, max_line_bytes=500):
            plain.take(item["path"], raw)
    return plain.metrics(), {name: table.to_pylist() for name, table in plain.tables().items()}


def place(row):
    return (row["file"], row["line"])


def assert_alike(root: Path) -> None:
    metrics, tables, _ = ingest(root)
    expected_metrics, expected = line_by_line(root)
    for name in TABLES:
        assert tables[name] == expected[name]
    assert tables["origins"] == sorted(expected["origins"], key=place)
    for got, wanted in zip(tables["quarantine"], expected["quarantine"], strict=True):
        if wanted["rule"] in ("conflicting_duplicate", "truncated_gzip"):  # told in other words
            assert place(got) == place(wanted)
            assert got["rule"] == wanted["rule"]
        else:
            assert got == wanted
    for name in ("read", "accepted", "quarantined", "duplicates", "forgotten"):
        assert metrics[name] == expected_metrics[name]


def numbered(kind: int, number: int):
    """An event of any type; equal numbers give equal ids, not always equal contents."""
    if kind == 0:
        return card(event_id=f"e{number}", card_id=f"c{number % 3}")
    if kind == 1:
        return exposure(event_id=f"e{number}", user_id=f"u{number % 4}")
    if kind == 2:
        return signal(number % 9, number % 5, event_id=f"e{number}")
    role = "user" if number % 2 else "assistant"
    return message(
        number % 60, role, None, event_id=f"e{number}", user_id="forgotten" if number == 7 else "u1"
    )


EVENTS = st.builds(numbered, st.integers(0, 5), st.integers(0, 40))
ODD = st.sampled_from(
    [
        b"{nonsense\n",
        b"\n",
        b"{}\n",
        b'{"a":1}{"b":2}\n',
        b'{"event_id":\n',
        b"null\n",
        b'"\xff"\n',
        b"[" * 5000 + b"\n",
        line(card(traits=[1])),
        line(signal(9, 2, signal="x")),
        line(message(9, "user", None, text="long" * 200)),
        line(message(9, "user", None, user_id=5)),
        line(message(9, "user", None, event_id="")),
        line(message(9, "user", None, event_id="odd", extra={"deep": [1, "two", {"a": None}]})),
        line(message(9, "user", None, event_id="nan")).replace(b'"c1"', b'"c1","x":NaN'),
        line(message(9, "user", None, event_id="twice")).replace(b'"c1"', b'"c1","text":"other"'),
        line(message(9, "user", None, event_id="crlf"))[:-1] + b"\r\n",
        b" " + line(message(9, "user", None, event_id="space")),
        line(message(9, "user", None, event_id="basic", time="20261102T101500+0100")),
        line(message(9, "user", None, event_id="fine", time="2026-11-02T10:15:00.123456789Z")),
        line(message(9, "user", None, event_id="feb", time="2026-02-30T10:15:00Z")),
        line(message(9, "user", None, event_id="hour", time="2026-11-02T24:15:00Z")),
        line(message(9, "user", None, event_id="old", time="0001-01-01T00:15:00+23:00")),
        line(message(9, "user", None, event_id="naive", time="2026-11-02T10:15:00")),
        line(message(9, "user", None, event_id="text", text="\U0001f600 \u0000 {[}")),
        line(message(9, "user", None, event_id="surrogate", text="AA")).replace(b"AA", b"\\ud800"),
        line(message(9, "user", None, event_id="utf", text="AA")).replace(b"AA", b"\xed\xa0\x80"),
    ]
)
LINES = st.lists(st.one_of(EVENTS.map(line), EVENTS.map(line), ODD, st.binary(max_size=20)), max_size=25)
NAMES = ("date=2026-11-02/a.jsonl", "date=2026-11-02/b.jsonl.gz", "date=2026-11-03/a.jsonl.gz")


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(mixes=st.lists(LINES, min_size=3, max_size=3), cut=st.integers(0, 200), small=st.booleans())
def test_any_events_split_and_cut_anywhere_give_what_line_by_line_gives(tmp_path, mixes, cut, small):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    for name, mix in zip(NAMES, mixes, strict=True):
        write_log(tmp_path, mix, name)
    last = tmp_path / "data/logs" / NAMES[-1]
    last.write_bytes(last.read_bytes()[: max(0, last.stat().st_size - cut)])
    with pytest.MonkeyPatch.context() as patch:
        if small:  # many runs, ranges and pieces
            for module, name, value in (
                (partition, "_RUN_ROWS", 4),
                (partition, "BATCH_ROWS", 2),
                (merge, "BATCH_ROWS", 2),
                (partition, "_KEY_ROWS", 3),
                (merge, "_ROWS", 3),
                (repeats, "_RANGE_ROWS", 4),
            ):
                patch.setattr(module, name, value)
            patch.setattr("flywheel_tasks.traffic.columns._LEAST_LINES", 2)
        assert_alike(tmp_path)


def many(count: int, start: int = 0):
    for k in range(start, start + count):
        number = (k * 7919) % 60
        extra = {"app": "ios"} if k % 3 else {}
        yield message(number, "user", None, event_id=f"e{k}", user_id=f"u{k % 50}", text=f"text {k}", **extra)


def test_thousands_of_lines_with_some_that_are_broken(tmp_path):
    log = [line(event) for event in many(6000)]
    for k in range(0, 6000, 97):
        log[k] = log[k].replace(b'"user"', b"5", 1) if k % 2 else log[k][:-9] + b"\n"
    write_log(tmp_path, log)
    write_log(tmp_path, log[1000:3000], NAMES[1])
    assert_alike(tmp_path)


def test_fields_whose_names_are_ids_are_left_to_the_exact_parser(tmp_path):
    write_log(tmp_path, [line({**event, f"key-{k}": 1}) for k, event in enumerate(many(400))])
    assert_alike(tmp_path)
    assert len(ingest(tmp_path)[0]["unknown_fields"]) <= 52


def test_deep_nesting_is_no_way_to_stop_the_stage(tmp_path):
    deep = line(message(1, "user", None, event_id="deep")).replace(b'"c1"', b'"c1","x":' + b"[" * 150_000)
    write_log(tmp_path, [*map(line, many(200)), deep])
    metrics, tables, _ = ingest(tmp_path, max_line_bytes=10**6)
    assert metrics["accepted"]["total"] == 200
    assert [row["rule"] for row in tables["quarantine"]] == ["not_json"]


def test_a_hash_that_two_ids_share_loses_neither(tmp_path, monkeypatch):
    monkeypatch.setattr(
        partition._Hasher,
        "hashes",
        lambda self, kind, rows: (
            np.stack(
                [
                    np.zeros(rows.num_rows, np.uint64),
                    np.array([hash(t) % 2**32 for t in rows["text"].to_pylist()], np.uint64),
                ]
            )
            if kind == "message"
            else np.arange(2 * rows.num_rows, dtype=np.uint64).reshape(2, -1) + 5
        ),
    )
    log = [*many(20), *many(5), message(1, "user", None, event_id="e3", text="other")]
    write_log(tmp_path, map(line, log))
    metrics, tables, _ = ingest(tmp_path)
    assert metrics["accepted"]["total"] == 20
    assert metrics["duplicates"] == 5
    assert [row["rule"] for row in tables["quarantine"]] == ["conflicting_duplicate"]
    assert "line 4" in tables["quarantine"][0]["detail"]


def test_only_new_and_changed_partitions_are_parsed(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)), NAMES[0])
    write_log(tmp_path, map(line, many(30, 20)), NAMES[2])
    first = ingest(tmp_path, cache)
    assert first[2] == [NAMES[0], NAMES[2]]
    again = ingest(tmp_path, cache, name="again")
    assert again == (first[0], first[1], [])
    assert (tmp_path / "again/messages.parquet").read_bytes() == (
        tmp_path / "out/messages.parquet"
    ).read_bytes()
    write_log(tmp_path, map(line, many(30, 25)), NAMES[2])
    write_log(tmp_path, map(line, many(5, 90)), NAMES[1])
    weekly = ingest(tmp_path, cache)
    assert weekly[2] == [NAMES[1], NAMES[2]]
    assert weekly[:2] == ingest(tmp_path)[:2]
    renamed = ingest(tmp_path, cache, rename={"app": "model"})
    assert len(renamed[2]) == 3, "other settings, other rows"


def test_the_cache_is_bounded_and_another_scope_leaves_nothing(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)))
    ingest(tmp_path, cache)
    assert len(list(cache.glob("*/*"))) == 1
    ingest(tmp_path, cache, max_line_bytes=600)
    assert len(list(cache.glob("*"))) == 1, "what was parsed with other settings or users is gone"
    ingest(tmp_path, cache, cache_bytes=0)
    assert not list(cache.glob("*/*"))


def test_a_half_written_entry_is_not_used_and_a_broken_one_does_no_harm(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)))
    expected = ingest(tmp_path, cache)
    entry = next(cache.glob("*/*"))
    (entry / "partition.json").unlink()  # as a kill in the middle of a removal leaves it
    shutil.copytree(entry, entry.with_name(".0123"))
    metrics, tables, parsed = ingest(tmp_path, cache)
    assert (metrics, tables) == expected[:2]
    assert parsed == ["date=2026-11-02/part-000.jsonl"]


def test_two_runs_at_once_and_a_third_that_empties_the_cache(tmp_path):
    write_log(tmp_path, map(line, many(2000)), NAMES[0])
    write_log(tmp_path, map(line, many(2000, 1500)), NAMES[1])
    expected = ingest(tmp_path)[:2]
    roots, found, stop = [], [], threading.Event()
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        (root / "data").symlink_to(tmp_path / "data")
        roots.append(root)

    def empty():
        while not stop.is_set():
            for entry in (tmp_path / "cache").glob("*/*"):
                shutil.rmtree(entry, ignore_errors=True)

    threads = [
        threading.Thread(
            target=lambda root=root: found.extend(ingest(root, tmp_path / "cache")[:2] for _ in range(3))
        )
        for root in roots
    ]
    remover = threading.Thread(target=empty)
    for thread in (*threads, remover):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    remover.join()
    assert found == [expected] * 6


def test_late_early_and_repeated_deliveries_are_counted(tmp_path):
    write_log(tmp_path, [line(message(1, "user", None)), line(message(2, "user", None))], NAMES[0])
    write_log(tmp_path, [line(message(1, "user", None)), line(message(3, "user", None))], NAMES[2])
    write_log(tmp_path, [line(message(4, "user", None))], "date=2026-11-30/a.jsonl")
    write_log(tmp_path, [line(message(5, "user", None))], "date=2026-11-01/a.jsonl")
    metrics, tables, _ = ingest(tmp_path)
    assert metrics["duplicates"] == 1
    assert metrics["lateness"] == {
        "early": 1,
        "same_day": 2,
        "late_1_day": 2,  # the repeat among them
        "late_2_to_7_days": 0,
        "late_over_7_days": 1,
    }
    origins = {row["event_id"]: row["file"] for row in tables["origins"]}
    assert origins["e-m1"] == NAMES[0]


def test_a_rename_is_suspected_and_takes_effect_only_when_declared(tmp_path):
    log = []
    for k, event in enumerate(many(200)):
        event["parent_id"] = f"m-{k}"
        if k >= 100:
            event["author"] = event.pop("user_id")
            event["reply_to"] = event.pop("parent_id")
        log.append(event)
    write_log(tmp_path, map(line, log))
    metrics, tables, _ = ingest(tmp_path)
    assert metrics["quarantined"] == {"total": 100, "missing_field": 100}
    assert metrics["drift"]["missing"] == {"message.user_id": 0.5}
    assert set(metrics["drift"]["probable_rename"]) == {"message.author for user_id"}
    assert metrics["drift"]["new"]["message.app"]["type"] == "string"
    mended, tables, _ = ingest(tmp_path, rename={"author": "user_id"})
    assert mended["accepted"]["message"] == 200
    assert mended["renamed"] == {"author": 100}
    assert {row["user_id"] for row in tables["messages"]} == {KEY.hashed(f"u{k}") for k in range(50)}
    assert set(mended["drift"]["probable_rename"]) == {"message.reply_to for parent_id"}


@settings(suppress_health_check=list(HealthCheck), max_examples=40)
@given(
    fields=st.lists(
        st.tuples(st.sampled_from([None, "a", "b", 5]), st.sampled_from([None, "x", "y", ["l"]])),
        min_size=1,
        max_size=8,
    )
)
def test_a_renamed_field_is_read_alike_in_columns_and_line_by_line(tmp_path, fields):
    from flywheel_tasks.traffic.events import EventError, parse_line
    from flywheel_tasks.traffic.lines import Block
    from flywheel_tasks.traffic.parsed import Parser

    lines = [
        line({**message(1, "user", None, event_id=f"e{k}", model=new), "old": old})
        for k, (new, old) in enumerate(fields)
    ]
    parsed = Parser(WHO, 10_000, {"old": "model"}).lines(Block(1, b"".join(lines)))
    got = {
        row["line"]: row["model"]
        for tables in parsed.tables.values()
        for t in tables
        for row in t.to_pylist()
    }
    wanted, renamed, unknown = {}, 0, 0
    for number, item in enumerate(lines, 1):
        try:
            event = parse_line(item, {"old": "model"})
        except EventError:
            continue
        wanted[number] = event.row["model"]
        renamed += len(event.renamed)
        unknown += len(event.unknown)
    assert got == wanted
    assert parsed.renamed.total() == renamed
    assert sum(parsed.profile.unknown.values()) == unknown
    assert len(parsed.refused) == len(lines) - len(wanted)


def parquet(root: Path, rows, name="date=2026-11-02/part.parquet", schema=None):
    path = root / "data/logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def test_parquet_partitions_follow_the_same_rules(tmp_path):
    log = [
        *events(),
        message(8, "robot", None),
        card(traits=None, event_id="e-c2"),
        message(9, "user", None, text=""),
    ]
    write_log(tmp_path / "lines", map(line, log))
    names = list(dict.fromkeys(name for event in log for name in event))
    parquet(tmp_path / "rows", [{name: event.get(name) for name in names} for event in log])
    rows, lines = ingest(tmp_path / "rows"), ingest(tmp_path / "lines")
    for name in TABLES:
        assert rows[1][name] == lines[1][name]
    refused = [(row["file"], row["line"], row["rule"]) for row in rows[1]["quarantine"]]
    assert refused == [
        ("date=2026-11-02/part.parquet", 10, "unknown_role"),
        ("date=2026-11-02/part.parquet", 11, "missing_field"),  # a null is an absent field
    ]
    assert orjson.loads(rows[1]["quarantine"][0]["raw"])["role"] == "robot"
    assert rows[0]["accepted"] == lines[0]["accepted"]


def test_parquet_times_may_be_timestamps_and_text_may_be_dictionaries(tmp_path):
    from datetime import datetime

    rows = [{**event, "time": datetime.fromisoformat(event["time"])} for event in many(50)]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(
        table.schema.get_field_index("role"),
        "role",
        table["role"].dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string())),
    )
    path = parquet(tmp_path, [])
    pq.write_table(table, path)
    metrics, tables, _ = ingest(tmp_path)
    assert metrics["accepted"]["message"] == 50
    write_log(tmp_path / "lines", map(line, many(50)))
    assert tables["messages"] == ingest(tmp_path / "lines")[1]["messages"]
    naive = table.set_column(
        table.schema.get_field_index("time"), "time", table["time"].cast(pa.timestamp("us"))
    )
    pq.write_table(naive, path)
    assert ingest(tmp_path)[0]["quarantined"] == {"total": 50, "bad_time": 50}


def test_a_parquet_file_that_is_none_or_has_wrong_types_is_an_error_with_its_name(tmp_path):
    path = parquet(tmp_path, [{**event, "user_id": 5} for event in many(3)])
    with pytest.raises(LogsError, match=r"part\.parquet: column user_id is int64"):
        ingest(tmp_path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(LogsError, match=r"part\.parquet: not a Parquet file"):
        ingest(tmp_path)


def test_a_cached_partition_does_not_need_its_file(tmp_path):
    """What was pinned was read: the file may since be gone or rewritten."""
    cache = tmp_path / "cache"
    path = write_log(tmp_path, map(line, many(30)))
    pinned = pin_logs("data/logs", tmp_path)["partitions"]
    expected = ingest(tmp_path, cache)[0]
    path.unlink()
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch-2", cache)
    assert ingestion.run(pinned, tmp_path / "out-2") == expected
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch-3", None)
    with pytest.raises(LogsError, match="cannot be read"):
        ingestion.run(pinned, tmp_path / "out-3")


def test_a_damaged_partition_leaves_nothing_in_the_cache(tmp_path):
    path = write_log(tmp_path, map(line, many(30)), NAMES[1])
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(LogsError, match="damaged gzip"):
        ingest(tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))
    path.write_bytes(gzip.compress(b"{}\n"))
    pinned = pin_logs("data/logs", tmp_path)["partitions"]
    path.write_bytes(gzip.compress(b"{ }\n"))
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch", tmp_path / "cache")
    with pytest.raises(LogsError, match="changed since it was pinned"):
        ingestion.run(pinned, tmp_path / "out")
