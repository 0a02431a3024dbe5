"""The stage against ingestion line by line: any events, in any order, split and cut anywhere."""

import resource
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.traffic import logs, merge, partition, repeats
from flywheel_tasks.traffic.identity import Identity
from flywheel_tasks.traffic.logs import pin_logs
from flywheel_tasks.traffic.schemas import TABLES
from tests.traffic.ingesting import KEY, NAMES, WHO, ingest, many
from tests.traffic.line_by_line import Ingestion as LineByLine
from tests.traffic.line_by_line import open_partition
from tests.traffic.sample import card, exposure, line, message, signal, write_log


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


def test_thousands_of_lines_with_some_that_are_broken(tmp_path):
    log = [line(event) for event in many(6000)]
    for k in range(0, 6000, 97):
        log[k] = log[k].replace(b'"user"', b"5", 1) if k % 2 else log[k][:-9] + b"\n"
    write_log(tmp_path, log)
    write_log(tmp_path, log[1000:3000], NAMES[1])
    assert_alike(tmp_path)


@pytest.fixture
def few_files():
    """A process that may have only 50 more files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 50, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_there_may_be_more_files_than_a_process_may_have_open(tmp_path, few_files, monkeypatch):
    monkeypatch.setattr(repeats, "_RANGE_ROWS", 100)
    entries, hashes = [], np.arange(8, dtype=np.uint64) * np.uint64(1 << 61)
    for k in range(100):  # half of each file's events are in every file
        own = hashes + np.where(np.arange(8) % 2, np.uint64(0), np.uint64(k))
        keys = np.stack([own, np.ones_like(own), np.arange(8, dtype=np.uint64)])
        (tmp_path / str(k)).mkdir()
        np.save(tmp_path / f"{k}/keys-0.npy", np.asarray(keys, order="F" if k % 2 else "C"))
        entries.append(repeats.Entry(k, str(k), tmp_path / str(k), {"rows": 8, "keys": ["keys-0.npy"]}))
    found = repeats.find_repeats(entries)
    assert found.duplicates == 99 * 4
    assert {k: lines.tolist() for k, lines in found.dropped.items()} == {
        k: [1, 3, 5, 7] for k in range(1, 100)
    }


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


def test_many_contradicting_events_are_quarantined_some_at_a_time_in_the_order_of_their_lines(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(partition, "_RUN_ROWS", 20)
    monkeypatch.setattr(merge, "BATCH_ROWS", 7)
    monkeypatch.setattr("flywheel_tasks.traffic.lines._INFLATE", 1_000)
    monkeypatch.setattr(logs, "line_blocks", partial(logs.line_blocks, block_bytes=2_000))
    write_log(tmp_path, map(line, many(60)), NAMES[0])
    log: list[bytes] = []
    for k, event in enumerate(many(60)):
        log += [line(event | {"text": "other"}), b"no event\n"] if k % 3 else [line(event)]
    log.append(line(signal(1, 1, event_id="e7")))
    write_log(tmp_path, log, NAMES[2])
    metrics, tables, _ = ingest(tmp_path)
    assert len(list((tmp_path / "scratch/1").glob("message-*.arrow"))) > 1
    assert metrics["duplicates"] == 20
    assert metrics["quarantined"] == {"total": 81, "conflicting_duplicate": 41, "not_json": 40}
    rows = tables["quarantine"]
    assert [row["line"] for row in rows] == [
        k for k, text in enumerate(log, 1) if text not in map(line, many(60))
    ]
    assert rows[0]["detail"] == f"event_id e1 has other content in {NAMES[0]} line 2"
    assert rows[-1]["detail"] == f"event_id e7 has other content in {NAMES[0]} line 8"
    file = pq.ParquetFile(tmp_path / "out/quarantine.parquet")
    assert {file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)} == {7, 81 % 7}


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
