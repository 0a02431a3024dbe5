from datetime import date, datetime
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
import pytest

from flywheel_tasks.settings import Warehouse
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.traffic import warehouse
from flywheel_tasks.traffic.ingest import Ingestion
from flywheel_tasks.traffic.logs import LogsError
from flywheel_tasks.traffic.schemas import TABLES
from flywheel_tasks.traffic.warehouse import extract
from tests.traffic.ingesting import WHO, ingest, settled
from tests.traffic.sample import card, events, exposure, line, message, signal, write_log

NAMES = {"card": "cards", "message": "chat.messages", "signal": "signals", "exposure": "exposures"}
WAREHOUSE = Warehouse(tables=NAMES, extract_to="data/warehouse")


def log():
    """The sample, events of a day before the newest ones, some that are broken, and one without a time."""
    older = [
        message(40 + k, "user", None, time=f"2026-11-0{k}T10:00:00Z", event_id=f"old-{k}") for k in (1, 3)
    ]
    return [
        *events(),
        *older,
        message(50, "robot", None),
        signal(8, 2, time=None, event_id="timeless"),
        message(51, "user", None, time="2026-11-04T00:00:00+02:00", event_id="evening"),
        exposure(time="2026-11-04T12:00:00Z", event_id="newest"),
    ]


def build(path: Path, rows, **renamed) -> str:
    connection = duckdb.connect(str(path))
    connection.execute("CREATE SCHEMA chat")
    for kind, name in NAMES.items():
        found = [dict(event) for event in rows if event["type"] == kind]
        for event in found:
            event["time"] = event["time"] and datetime.fromisoformat(event["time"])
            event.pop("type")
            for new, old in renamed.items():
                if new in event:
                    event[old] = event.pop(new)
        rows_of_kind = pa.Table.from_pylist(found)  # read by the query
        assert rows_of_kind.num_rows
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM rows_of_kind ORDER BY random()")
    connection.close()
    return f"ibis+duckdb://{path}"


def read(root: Path, pinned, **changes):
    ingestion = Ingestion(pinned["location"], root, settled(**changes), WHO, root / "scratch", None)
    metrics = ingestion.run(pinned["partitions"], root / "out")
    return metrics, {path.stem: read_rows(path) for path in (root / "out").iterdir()}


def test_a_warehouse_gives_what_the_same_events_give_as_lines(tmp_path):
    location = build(tmp_path / "events.db", log())
    pinned = extract(location, WAREHOUSE, 3, {}, tmp_path)
    days = sorted({item["path"][:15] for item in pinned["partitions"]})
    assert days == ["date=2026-11-02", "date=2026-11-03", "date=2026-11-04"]
    assert pinned["earlier"] is True
    metrics, tables = read(tmp_path, pinned)
    kept = [event for event in log() if event["event_id"] != "old-1"]
    for event in kept:
        day = (event["time"] or "2026-11-04")[:10]
        write_log(tmp_path / "lines", [line(event)], f"date={day}/{event['event_id']}.jsonl")
    expected, by_line, _ = ingest(tmp_path / "lines")
    for name in TABLES:
        assert tables[name] == by_line[name]
    assert metrics["read"] == expected["read"] == len(kept)
    refused = sorted((row["rule"], row["file"][:15]) for row in tables["quarantine"])
    assert refused == [("missing_field", "date=2026-11-04"), ("unknown_role", "date=2026-11-02")]


def test_the_same_contents_give_the_same_pins_and_files_are_never_changed(tmp_path):
    pinned = extract(build(tmp_path / "one.db", log()), WAREHOUSE, 3, {}, tmp_path)
    again = extract(build(tmp_path / "two.db", log()), WAREHOUSE, 3, {}, tmp_path)
    assert pinned == again
    more = [*log(), message(52, "user", None, time="2026-11-04T01:00:00Z")]
    later = extract(build(tmp_path / "three.db", more), WAREHOUSE, 3, {}, tmp_path)
    assert later != pinned
    assert read(tmp_path, pinned)[0]["read"] + 1 == read(tmp_path, later)[0]["read"]
    assert not list((tmp_path / "data/warehouse").rglob("_*"))


def spread(days):
    """Messages of some days, and the card that they are with."""
    yield card()
    number = 0
    for day, count in days.items():
        for _ in range(count):
            number += 1
            yield message(number % 60, "user", None, time=f"{day}T10:00:00Z", event_id=f"{day}-{number}")
    yield signal(1, 1)
    yield exposure()


@pytest.mark.parametrize(
    ("days", "first"),
    [
        ({"2026-11-01": 30, "2026-11-02": 40, "2031-01-01": 1}, "2026-11-02"),
        ({"2026-11-02": 1000, "2031-01-01": 1}, "2026-11-02"),
        ({"2026-11-01": 40, "2026-11-02": 30, "2026-11-03": 4}, "2026-11-03"),  # as few as begin a day
        ({"2026-11-01": 8, "2026-11-02": 1}, "2026-11-02"),
    ],
)
def test_a_few_events_with_a_wrong_clock_do_not_move_the_window_and_are_not_lost(tmp_path, days, first):
    pinned = extract(build(tmp_path / "events.db", list(spread(days))), WAREHOUSE, 1, {}, tmp_path)
    assert {item["path"][5:15] for item in pinned["partitions"]} == {first}
    metrics, tables = read(tmp_path, pinned)
    later = sum(count for day, count in days.items() if day >= first)
    assert metrics["accepted"]["message"] == len(tables["messages"]) == later
    assert metrics["accepted"]["card"] == 1


@pytest.mark.parametrize("time", ["timestamptz 'infinity'", "to_timestamp(1762077600000)"])
def test_a_time_that_is_none_goes_to_quarantine(tmp_path, time):
    location = build(tmp_path / "events.db", list(spread({"2026-11-02": 30})))
    with duckdb.connect(str(tmp_path / "events.db")) as connection:
        connection.execute("SET timezone = 'UTC'")
        connection.execute(
            f"INSERT INTO chat.messages SELECT * REPLACE ('odd' AS event_id, {time} AS time) "
            "FROM chat.messages LIMIT 1"
        )
    metrics, tables = read(tmp_path, extract(location, WAREHOUSE, 1, {}, tmp_path))
    assert metrics["accepted"]["message"] == 30
    assert [(row["rule"], orjson.loads(row["raw"])["event_id"]) for row in tables["quarantine"]] == [
        ("bad_time", "odd")
    ]


def test_the_median_day_is_of_the_newest_days_with_events(tmp_path, monkeypatch):
    monkeypatch.setattr(warehouse, "_NEAR_DAYS", 3)
    days = {f"2026-10-0{k}": 50 for k in range(1, 7)} | {f"2026-11-0{k}": 2 for k in range(1, 4)}
    pinned = extract(build(tmp_path / "events.db", list(spread(days))), WAREHOUSE, 1, {}, tmp_path)
    assert {item["path"][5:15] for item in pinned["partitions"]} == {"2026-11-03"}


def test_a_day_that_is_not_over_is_not_the_newest_one(tmp_path):
    """Or the rest of it would be in no generation: the next window begins after it."""
    days = {f"2026-10-0{k}": 20 for k in range(1, 5)}
    location = build(tmp_path / "events.db", list(spread(days)))

    def read_days(today: date) -> tuple[list[str], int]:
        pinned = extract(location, WAREHOUSE, 2, {}, tmp_path, today)
        found = sorted({item["path"][5:15] for item in pinned["partitions"]})
        return found, read(tmp_path, pinned)[0]["accepted"]["message"]

    assert read_days(date(2026, 10, 4)) == (
        ["2026-10-02", "2026-10-03"],
        60,
    )  # what there is of the fourth, too
    assert read_days(date(2026, 10, 5)) == (["2026-10-03", "2026-10-04"], 40)


def test_old_cards_come_along_and_old_messages_do_not(tmp_path):
    pinned = extract(build(tmp_path / "events.db", log()), WAREHOUSE, 1, {}, tmp_path)
    metrics, _ = read(tmp_path, pinned)
    assert metrics["accepted"]["card"] == 1
    assert metrics["accepted"]["message"] == 0
    assert metrics["lateness"]["late_2_to_7_days"] == 1


def test_declared_renames_hold_for_columns_too(tmp_path):
    location = build(tmp_path / "events.db", log(), time="sent_at", user_id="author")
    rename = {"sent_at": "time", "author": "user_id"}
    metrics, tables = read(tmp_path, extract(location, WAREHOUSE, 3, rename, tmp_path), rename=rename)
    plain, expected = read(tmp_path, extract(build(tmp_path / "b.db", log()), WAREHOUSE, 3, {}, tmp_path))
    assert tables["messages"] == expected["messages"]
    assert metrics["accepted"] == plain["accepted"]


def test_what_is_wrong_is_told_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WAREHOUSE_PASSWORD", "hunter2")
    with pytest.raises(LogsError, match="cannot be opened") as error:
        extract("ibis+postgres://u:${WAREHOUSE_PASSWORD}@127.0.0.1:1/db", WAREHOUSE, 3, {}, tmp_path)
    assert "hunter2" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr("ibis.connect", lambda url: (_ for _ in ()).throw(OSError("no login with hunter2")))
        with pytest.raises(LogsError, match=r"cannot be opened: OSError: no login with \*\*\*$"):
            extract("ibis+postgres://u:${WAREHOUSE_PASSWORD}@db/x", WAREHOUSE, 3, {}, tmp_path)
        with pytest.raises(LogsError, match=r"^db/x: cannot be opened: OSError: no login with \*\*\*$"):
            extract("ibis+postgres://u:hunter2@db/x?sslkey=abc", WAREHOUSE, 3, {}, tmp_path)
    location = build(tmp_path / "events.db", log())
    other = Warehouse(tables={"message": "nowhere"}, extract_to="data/warehouse")
    with pytest.raises(LogsError, match=r"logs\.warehouse\.tables\.message: no table nowhere"):
        extract(location, other, 3, {}, tmp_path)
    connection = duckdb.connect(str(tmp_path / "events.db"))
    connection.execute(
        "CREATE TABLE naive AS SELECT TIMESTAMP '2026-11-02 10:00:00' AS time, 'e' AS event_id"
    )
    connection.close()
    naive = Warehouse(tables={"message": "naive"}, extract_to="data/warehouse")
    with pytest.raises(
        LogsError, match=r"table naive: time is timestamp.*must be a timestamp with a time zone"
    ):
        extract(location, naive, 3, {}, tmp_path)


def test_a_generation_is_opened_on_a_warehouse(tmp_path):
    from flywheel_tasks.pipeline.pinned_data import pinned_logs
    from flywheel_tasks.settings import load_settings

    text = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
    location = build(tmp_path / "events.db", log())
    text = text.replace("location: data/logs ", f"location: {location} ").replace(
        "message: messages", "message: chat.messages"
    )
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    settings = load_settings(tmp_path / "params.yaml")
    pinned = pinned_logs(settings, tmp_path)
    assert pinned["location"] == "data/warehouse"
    assert pinned["earlier"] is False
    assert max(date.fromisoformat(item["path"][5:15]) for item in pinned["partitions"]) == date(2026, 11, 4)


def test_the_days_since_the_last_generation_are_extracted_as_far_back_as_is_asked(tmp_path):
    days = [f"2026-11-{day:02d}" for day in range(1, 12)]
    location = build(tmp_path / "events.db", list(spread(dict.fromkeys(days, 20))))

    def extracted(today: date, *how) -> list[str]:
        pinned.append(extract(location, WAREHOUSE, 2, {}, tmp_path, today, *how))
        messages = (item["path"] for item in pinned[-1]["partitions"] if "message-" in item["path"])
        return [path[5:15] for path in messages]

    pinned: list[dict] = []
    assert extracted(date(2026, 11, 5)) == days[2:4]
    first = pinned[0]
    assert extracted(date(2026, 11, 12), [first], 28) == days[4:]
    assert extracted(date(2026, 11, 12), [first], 3) == days[6:]
    assert extracted(date(2026, 11, 12), [first]) == days[9:]
    assert extracted(date(2026, 11, 12), [first | {"location": "data/logs"}], 28) == days[9:]
