"""Partitions in Parquet follow the rules of lines."""

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.traffic.logs import LogsError
from flywheel_tasks.traffic.schemas import TABLES
from tests.traffic.ingesting import ingest, many
from tests.traffic.sample import card, damaged_parquet, events, line, message, write_log


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


@pytest.mark.parametrize(
    ("unit", "time"), [("s", 10**12), ("ms", 10**15), ("us", -(2**62)), ("us", 2**63 - 1)]
)
def test_a_timestamp_beyond_all_years_is_a_bad_time_of_its_row_only(tmp_path, unit, time):
    path = parquet(tmp_path, [])
    table = pa.Table.from_pylist([{**event, "seen": None} for event in many(3)])
    for name in ("time", "seen"):  # a field of the format, and one that it does not have
        times = pa.array([5, time, 6], pa.timestamp(unit, tz="UTC"))
        table = table.set_column(table.schema.get_field_index(name), name, times)
    pq.write_table(table, path)
    metrics, tables, _ = ingest(tmp_path)
    assert (metrics["read"], metrics["accepted"]["total"]) == (3, 2)
    [refused] = tables["quarantine"]
    assert (refused["file"], refused["line"], refused["rule"]) == (
        "date=2026-11-02/part.parquet",
        2,
        "bad_time",
    )
    assert " since 1970" in refused["detail"]
    assert orjson.loads(refused["raw"])["event_id"] == "e1"


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_damaged_pages_are_an_error_with_the_files_name(tmp_path, compression):
    path = parquet(tmp_path, [])
    damaged_parquet(
        path, [event | {"text": f"{event['text']} lorem ipsum" * 9} for event in many(500)], compression
    )
    with pytest.raises(LogsError, match=r"part\.parquet: damaged.* row"):
        ingest(tmp_path)


def test_text_that_is_not_utf_8_is_named_with_its_column(tmp_path):
    path = parquet(tmp_path, [])
    table = pa.Table.from_pylist(list(many(3)))
    bad = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"fine", b"\xff\xfe", b"ok"], pa.binary()).buffers()
    )
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", bad), path)
    with pytest.raises(LogsError, match=r"part\.parquet: damaged: column text, in rows 1 to 3: Invalid UTF8"):
        ingest(tmp_path)
