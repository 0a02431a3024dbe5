import gzip
import io

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import read_rows, read_table
from flywheel_tasks.traffic.identity import Identity, pin_users
from flywheel_tasks.traffic.ingest import run
from flywheel_tasks.traffic.lines import gzip_chunks, plain_chunks, split_lines
from flywheel_tasks.traffic.logs import LogsError, pin_logs
from flywheel_tasks.traffic.refused import other_names
from flywheel_tasks.traffic.schemas import INGEST_QUARANTINE, ORIGINS, TABLES
from tests.traffic.ingesting import KEY
from tests.traffic.line_by_line import Ingestion
from tests.traffic.sample import card, events, line, message, signal, write_log
from tests.traffic.stage import adds_up, ingest


def test_every_event_lands_in_its_table_sorted_by_time(tmp_path, make_io):
    log = events()
    write_log(tmp_path, map(line, log[4:]), "date=2026-11-02/a.jsonl")
    write_log(tmp_path, map(line, reversed(log[:4])), "date=2026-11-02/b.jsonl.gz")
    metrics, folder = ingest(tmp_path, make_io)
    assert metrics["read"] == len(log) == metrics["accepted"]["total"]
    assert metrics["accepted"] == {"total": 9, "card": 1, "message": 5, "signal": 2, "exposure": 1}
    for name, schema in {**TABLES, "quarantine": INGEST_QUARANTINE, "origins": ORIGINS}.items():
        assert read_table(folder / f"{name}.parquet").schema.equals(schema)
    messages = read_rows(folder / "messages.parquet")
    assert [row["message_id"] for row in messages] == ["m1", "m2", "m3", "m4", "m5"]
    assert messages[2] | {"time": None} == {
        **{name: value for name, value in log[4].items() if name != "type"},
        "user_id": KEY.hashed("u1"),
        "time": None,
    }
    origins = {row["event_id"]: (row["file"], row["line"]) for row in read_rows(folder / "origins.parquet")}
    assert origins["e-m3"] == ("date=2026-11-02/a.jsonl", 1)
    assert origins["e-card"] == ("date=2026-11-02/b.jsonl.gz", 4)


def test_each_kind_of_broken_line_is_quarantined_with_file_line_and_rule(tmp_path, make_io):
    broken = [
        (b"{nonsense\n", "not_json"),
        (line(card(traits="one")), "wrong_type"),
        (line(signal(7, 2, signal="thumbs_up")), "unknown_signal"),
        (b"\n", "empty_line"),
        (line(message(9, "user", None, text="x" * 2000)), "line_too_long"),
        (b"\xff\xfe\n", "not_json"),
    ]
    write_log(tmp_path, [*map(line, events()), *(data for data, _ in broken)])
    metrics, folder = ingest(tmp_path, make_io, **{"ingest.max_line_bytes": 1000})
    rows = read_rows(folder / "quarantine.parquet")
    assert [(row["line"], row["rule"]) for row in rows] == [
        (10 + n, rule) for n, (_, rule) in enumerate(broken)
    ]
    assert {row["file"] for row in rows} == {"date=2026-11-02/part-000.jsonl"}
    assert rows[2]["raw"].startswith('{"event_id":"e-s7"')
    assert rows[5]["raw"] == rows[0]["raw"] == ""  # nobody can say whose words they are
    assert orjson.loads(rows[1]["raw"]) == card(traits="one")  # a card is nobody's
    assert all(row["detail"] for row in rows)
    assert metrics["quarantined"] == {
        "total": 6,
        "empty_line": 1,
        "line_too_long": 1,
        "not_json": 2,
        "unknown_signal": 1,
        "wrong_type": 1,
    }
    assert adds_up(metrics)


def test_a_repeat_is_counted_and_a_conflict_is_quarantined(tmp_path, make_io):
    first = message(2, "assistant", 1)
    same = {**dict(reversed(first.items())), "time": "2026-11-02T12:02:00+02:00", "received": "later"}
    write_log(tmp_path, map(line, [*events(), same, {**first, "text": "other"}]))
    write_log(tmp_path, map(line, [first]), "date=2026-11-03/again.jsonl.gz")
    metrics, folder = ingest(tmp_path, make_io)
    assert metrics["duplicates"] == 2
    assert metrics["quarantined"] == {"total": 1, "conflicting_duplicate": 1}
    assert adds_up(metrics)
    row = read_rows(folder / "quarantine.parquet")[0]
    assert row["line"] == 11
    assert "e-m2" in row["detail"]
    assert "line 4" in row["detail"]
    texts = {item["message_id"]: item["text"] for item in read_rows(folder / "messages.parquet")}
    assert texts["m2"] == "text 2"


def test_an_id_shared_by_two_types_is_a_conflict(tmp_path, make_io):
    write_log(tmp_path, map(line, [*events(), signal(3, 5, event_id="e-card")]))
    metrics, _ = ingest(tmp_path, make_io)
    assert metrics["quarantined"] == {"total": 1, "conflicting_duplicate": 1}


def test_unknown_fields_are_tolerated_and_counted(tmp_path, make_io):
    write_log(tmp_path, [line({**event, "app": "ios"}) for event in events()])
    metrics, _ = ingest(tmp_path, make_io)
    assert metrics["accepted"]["total"] == 9
    assert metrics["unknown_fields"] == {
        "total": 9,
        "card.app": 1,
        "exposure.app": 1,
        "message.app": 5,
        "signal.app": 2,
    }


def test_names_of_unknown_fields_are_bounded(tmp_path, make_io):
    write_log(tmp_path, [line(card(event_id=f"e{n}", **{f"field{n}": 1})) for n in range(80)])
    metrics, _ = ingest(tmp_path, make_io)
    assert metrics["unknown_fields"]["total"] == 80
    assert len(metrics["unknown_fields"]) == 52
    assert metrics["unknown_fields"]["other"] == 30


def test_names_of_unknown_fields_are_bounded_over_partitions_too(tmp_path, make_io):
    """Of a field that is counted with the others, no part of the report speaks by name."""
    for day in range(3):
        log = [
            message(n, "user", None, event_id=f"e{day}-{n}", **{f"field{day}-{n}": f"m{n}"})
            for n in range(40)
        ]
        write_log(tmp_path, map(line, log), f"date=2026-11-0{day + 2}/a.jsonl")
    metrics, _ = ingest(tmp_path, make_io)
    assert metrics["unknown_fields"]["other"] == 120 - 50
    assert metrics["drift"]["new"]["message.other"] == {"share": 70 / 120, "type": "string"}
    assert len(metrics["drift"]["new"]) == 51


def test_a_truncated_gzip_keeps_its_whole_lines(tmp_path, make_io):
    lines = [line(message(n % 60, "user", None, event_id=f"e{n}", text=f"{n * 7919}")) for n in range(500)]
    path = write_log(tmp_path, lines, "date=2026-11-02/cut.jsonl.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    metrics, folder = ingest(tmp_path, make_io)
    accepted = metrics["accepted"]["message"]
    assert 100 < accepted < 400
    assert metrics["read"] == accepted + 1
    assert metrics["quarantined"] == {"total": 1, "truncated_gzip": 1}
    row = read_rows(folder / "quarantine.parquet")[0]
    assert row["file"] == "date=2026-11-02/cut.jsonl.gz"
    assert row["line"] == accepted + 1
    assert f"last good line: line {accepted}" in row["detail"]
    assert lines[accepted].decode().startswith(row["raw"].replace(KEY.hashed("u1"), "u1"))


def test_logs_without_any_event_are_an_error_with_the_rules(tmp_path, make_io):
    write_log(tmp_path, [b"nonsense\n", b"[]\n"])
    with pytest.raises(LogsError, match=r"hold no event: 2 lines .* not_json: 1, not_object: 1"):
        ingest(tmp_path, make_io)
    write_log(tmp_path, [])
    with pytest.raises(LogsError, match="hold no event: 0 lines"):
        ingest(tmp_path, make_io)


def test_only_a_field_that_stands_where_one_is_missing_is_taken_for_it():
    drift = {
        "missing": {"message.time": 0.01, "card.source": 0.5},
        "new": {
            "message.timestamp": {"share": 1.0, "type": "string"},
            "card.origin": {"share": 0.5, "type": "number"},
            "card.other": {"share": 0.5, "type": "string"},
        },
    }
    (told,) = other_names(drift)
    assert "no field source in events of type card (50%), but origin" in told
    assert told.endswith("write it as a string, for origin is a number")


def test_logs_without_any_event_name_lines_and_a_field_under_another_name(tmp_path, make_io):
    secret = "words that somebody said"
    log = [{**message(1, "user", None, text=secret), "event_id": f"e{n}"} for n in range(9)]
    for event in log[:-1]:
        event["timestamp"] = event.pop("time")
    log[-1]["time"], log[-1]["text"] = 1762077600, {"of": secret}
    write_log(tmp_path, map(line, log))
    with pytest.raises(LogsError) as caught:
        ingest(tmp_path, make_io)
    told = str(caught.value)
    assert "date=2026-11-02/part-000.jsonl:1: missing_field: time absent from this message" in told
    assert (
        "part-000.jsonl:9: wrong_type: time must be a string (ISO 8601 with a time zone), not a number"
        in told
    )
    assert "there is no field time in events of type message (100%), but timestamp, which the format" in told
    assert "set ingest.rename to {timestamp: time}" in told
    assert "words" not in told
    assert told.count("missing_field: ") == 4  # the count, and three lines


def test_a_partition_changed_after_pinning_stops_the_stage(tmp_path, make_io):
    stage_io = make_io("ingest", tmp_path)
    write_json(pin_users(KEY.fingerprint, set()), tmp_path / "inputs/users.json")
    write_log(tmp_path, map(line, events()))
    write_json(pin_logs("data/logs", tmp_path), tmp_path / "inputs/logs.json")
    write_log(tmp_path, map(line, events()[:-1]))
    with pytest.raises(LogsError, match=r"part-000\.jsonl changed since it was pinned"):
        run(stage_io)


def test_the_same_logs_give_the_same_bytes(tmp_path, make_io):
    results = []
    for name in ("one", "two"):
        write_log(tmp_path / name, map(line, [*events(), card()]))
        metrics, folder = ingest(tmp_path / name, make_io)
        results.append((metrics, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}))
    assert results[0] == results[1]


GOOD = [line(event) for event in events()]
BROKEN = [
    b"{nonsense\n",
    b"\n",
    b"null\n",
    b'"\xff"\n',
    line(card(traits=[1])),
    line(card(event_id="e-card", name="another")),
    line(signal(9, 2, signal="x")),
    line(message(9, "user", None, text="long" * 200)),
]
MIX = st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(BROKEN), st.binary(max_size=30)), max_size=30)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(mix=MIX, packed=st.booleans(), cut=st.integers(0, 400))
def test_any_mix_cut_anywhere_adds_up(mix, packed, cut):
    """Lines are counted independently: by splitting what can be unpacked of the file."""
    data = b"".join(mix)
    whole = gzip.compress(data, mtime=0) if packed else data
    kept = whole[: max(0, len(whole) - cut)]
    chunks = gzip_chunks if packed else plain_chunks
    ingestion = Ingestion(Identity(KEY, frozenset()))
    for raw in split_lines(chunks(io.BytesIO(kept)), 500):
        ingestion.take("file", raw)
    metrics = ingestion.metrics()
    assert adds_up(metrics)
    if not packed:
        assert metrics["read"] == len(kept.split(b"\n")) - (kept.endswith(b"\n") or not kept)
    elif len(kept) < len(whole):
        assert metrics["quarantined"]["truncated_gzip"] == 1
        assert metrics["read"] <= data.count(b"\n") + 1
    else:
        assert metrics["read"] == len(data.split(b"\n")) - (data.endswith(b"\n") or not data)
    tables = ingestion.tables()
    assert sum(tables[name].num_rows for name in TABLES) == metrics["accepted"]["total"]
    assert tables["quarantine"].num_rows == metrics["quarantined"]["total"]
    ids = [row["event_id"] for name in TABLES for row in tables[name].to_pylist()]
    assert len(set(ids)) == len(ids)
