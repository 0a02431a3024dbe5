"""The same test read from raw logs, from Parquet tables and from a warehouse gives the same figures."""

import os
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from flywheel_tasks.online import launch, log_events
from flywheel_tasks.online.analysis import analyse, look_at
from flywheel_tasks.online.event_source import of_simulated_users
from flywheel_tasks.online.exposed import PopulationError
from flywheel_tasks.online.guardrails import check
from flywheel_tasks.settings import load_settings
from tests.online.conftest import approve
from tests.online.tables import figures, settings_of, write_tables
from tests.online.test_launch import run_launch


def test_parquet_and_a_warehouse_give_what_the_raw_logs_give(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    raw = figures(root)
    assert raw["result"] == "valid", raw["reasons"]
    assert figures(root, events="tables") == raw
    house = root / "house.duckdb"
    with duckdb.connect(str(house)) as con:
        for name in ("exposures", "messages", "signals"):
            con.execute(f"create table {name} as from '{root}/tables/{name}/*.parquet'")
    for options in ("", "?read_only=True"):
        assert figures(root, events=f"duckdb://{house}{options}") == raw
    with duckdb.connect(str(house)) as con:  # it is the team's: nothing stays there
        found = {row[0] for row in con.execute("select table_name from duckdb_tables()").fetchall()}
    assert found == {"exposures", "messages", "signals"}


@pytest.mark.parametrize("kind", ["BIGINT", "UUID"])
def test_a_user_is_the_same_whatever_type_a_tables_ids_have(
    root: Path, events: list[dict], kind: str
) -> None:
    """DuckDB hashes 12 and '12' differently: no signal found its user, and every guardrail on signals passed."""
    write_tables(root / "tables", events)
    raw = figures(root)
    number = f"('0x' || user_id[3:])::{kind}" if kind == "BIGINT" else "md5(user_id)::UUID"
    with duckdb.connect() as con:
        for name in ("exposures", "messages", "signals"):
            path = root / f"tables/{name}/part-0.parquet"
            ids = f"({number})::VARCHAR" if name == "exposures" else number
            con.execute(f"create table {name} as select * replace ({ids} as user_id) from '{path}'")
            con.execute(f"copy {name} to '{path}'")
    assert figures(root, events="tables") == raw


def test_a_warehouse_has_the_tests_own_days_whatever_the_logs_are(root: Path, events: list[dict]) -> None:
    """The shipped settings say simulated logs; a test that is judged by other events still ends when it ends."""
    settings = settings_of(root, events="tables")
    assert settings.logs.source == "simulated"
    assert not of_simulated_users(settings)
    assert of_simulated_users(settings_of(root))
    write_tables(root / "tables", events)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("events: logs", "events: tables"))
    approve(root)
    run_launch(root)
    started = launch.start(root, by="ada")
    with look_at(root, load_settings(params), started, started.started_at + timedelta(days=1)) as look:
        assert not look.over
        assert look.ends_at == started.ends_at


def test_a_column_of_the_exposures_is_a_segment(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    found = figures(root, ("country",), events="tables")
    rows = [row for row in found["segments"] if row["segment"] == "country"]
    assert {(row["value"], row["metric"]) for row in rows} == {
        (country, metric) for country in ("de", "fr") for metric in ("breadth", "depth")
    }
    assert sum(row["lift_percent"]["n"] for row in rows if row["metric"] == "depth") == sum(
        found["users"].values()
    )
    with pytest.raises(PopulationError, match="no column planet"):
        figures(root, ("planet",), events="tables")


def test_a_segment_that_is_not_there_starts_no_test_and_keeps_no_look_from_being_taken(
    root: Path, events: list[dict]
) -> None:
    """Where the tables come later, only the analysis at the end needs it, and there it can still be put right."""
    write_tables(root / "later", events)
    (root / "tables").symlink_to(root / "later")
    params = root / "params.yaml"
    params.write_text(
        params.read_text()
        .replace("events: logs", "events: tables")
        .replace("segments: []", "segments: [planet]")
    )
    approve(root)
    run_launch(root)
    with pytest.raises(launch.LaunchError, match=r"exposures has no column planet; it has.*: .*country"):
        launch.start(root, by="ada")
    (root / "tables").unlink()
    started = launch.start(root, by="ada")
    (root / "tables").symlink_to(root / "later")
    assert check(root, "g0001", "ada", started.started_at + timedelta(hours=1)).reasons != ()
    with pytest.raises(PopulationError, match="no column planet"):
        analyse(root, "g0001", by="ada", now=started.ends_at)


@pytest.mark.parametrize(("limit", "threads"), [("1500MB", 3), ("2 GiB", 4), ("300MB", 1), ("80%", 2)])
def test_an_analysis_takes_no_more_threads_than_its_memory_feeds(
    limit: str, threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a thread on each of sixteen cores and 1500 MB, 200 million events ended out of memory."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("FLYWHEEL_AB_MEMORY", limit)
    found = log_events.connect(tmp_path).raw_sql("SELECT current_setting('threads')").fetchone()
    assert found == (threads,)
