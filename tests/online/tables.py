"""An A/B test's events as tables of a team's own, and what an analysis makes of them."""

import zlib
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.online.analysis import analyse_population
from flywheel_tasks.online.exposed import Window, population
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.traffic.events import parse_event
from tests.online.people import START, make_plan

PLAN = make_plan()
WINDOW = Window(START, START + timedelta(days=1))


def settings_of(root: Path, **changes: object) -> Settings:
    settings = load_settings(root / "params.yaml")
    return settings.model_copy(update={"ab": settings.ab.model_copy(update=changes)})


def figures(root: Path, segments: tuple[str, ...] = (), **changes: object) -> dict:
    with open_events(settings_of(root, **changes), root, PLAN) as events:
        made = population(events, WINDOW, PLAN.rule, segments)
        found = analyse_population(PLAN, made, simulated=False, segments=segments)
    return {key: value for key, value in found.items() if key != "logs"}


def write_tables(folder: Path, events: list[dict]) -> None:
    """The events as ingested tables, ids already hashed, with latencies and a column of the team's own."""
    tables: dict[str, list[dict]] = {"exposure": [], "message": [], "signal": []}
    for event in events:
        row = parse_event(event).row
        if event["type"] == "message":
            row["latency_ms"] = event.get("latency_ms")
        tables[event["type"]].append(row | {"user_id": f"u_{zlib.crc32(row['user_id'].encode()):08x}"})
    for row in tables["exposure"]:
        row["country"] = "de" if int(row["user_id"][-1], 16) % 2 else "fr"
    for name, rows in tables.items():
        (folder / f"{name}s").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}s/part-0.parquet")


def changed(path: Path, columns: str) -> None:
    """Replace columns of a table by expressions of SQL."""
    with duckdb.connect() as con:
        con.execute(f"create table changed as select * replace ({columns}) from '{path}'")
        con.execute(f"copy changed to '{path}'")
