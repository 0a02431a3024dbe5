"""Where a test's events are to be read from is tried before it starts: what no look could ever read starts no test."""

import os
from pathlib import Path

import duckdb
import pytest
import yaml

from flywheel_tasks.cli.not_reached import not_reached
from flywheel_tasks.online import launch
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.design import make_design
from flywheel_tasks.online.event_errors import EventsError, UnreachableEventsError
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.settings import SettingsError, load_settings
from flywheel_tasks.storage.documents import read_json
from tests.dags.small import ab_events, write_logs
from tests.online.conftest import approve
from tests.online.people import make_plan
from tests.online.test_launch import run_launch


def set_(root: Path, section: str, **changes: object) -> None:
    params = root / "params.yaml"
    document = yaml.safe_load(params.read_text())
    document[section] |= changes
    params.write_text(yaml.safe_dump(document))


def test_a_test_whose_logs_are_a_warehouse_wants_its_url(root: Path) -> None:
    """A generation extracts the newest days of it; no look could read any, and where it looks is fixed at the start."""
    set_(root, "logs", location=f"ibis+duckdb://ada:secret@{root}/house.duckdb", source="files")
    approve(root)
    run_launch(root)
    with pytest.raises(launch.LaunchError, match=r"set ab\.events to the warehouse's URL") as found:
        launch.start(root, by="ada")
    assert "secret" not in str(found.value)
    assert registry_of(root).state().running() is None
    with pytest.raises(EventsError, match=r"set ab\.events to the warehouse's URL"):
        make_design(root, lift_percent=5, power=0.8)
    set_(root, "ab", events=f"duckdb://{root}/house.duckdb")  # its tables may come later
    duckdb.connect(str(root / "house.duckdb")).close()
    launch.start(root, by="ada")
    assert registry_of(root).state().running() is not None


def test_no_password_of_a_warehouse_need_stand_in_the_settings(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in logs.location."""
    duckdb.connect(str(root / "house.duckdb")).close()
    monkeypatch.setitem(os.environ, "HOUSE", f"{root}/house.duckdb")
    set_(root, "ab", events="duckdb://${HOUSE}")
    settings = load_settings(root / "params.yaml")
    with (
        pytest.raises(UnreachableEventsError, match=r"house\.duckdb cannot be read: TableNotFound"),
        open_events(settings, root, make_plan()),
    ):
        pass


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        (
            "latency",
            r"none of \d+ replies in the newest days of data/logs has a latency_ms, which is a guardrail",
        ),
        (
            "signals",
            r"was any signal given .* take thumb_down_per_reply, .* out of ab\.guardrails, and run stage",
        ),
    ],
)
def test_a_test_whose_logs_tell_no_guardrail_does_not_start(root: Path, lost: str, why: str) -> None:
    """It ran to its end, and was invalid then."""
    set_(root, "logs", source="files")
    approve(root)
    run_launch(root)
    plan = read_json(root / "launch/plan.json")
    events = ab_events(plan, 600)
    for event in events:
        event.pop("latency_ms" if lost == "latency" else "none", None)
    kept = [event for event in events if lost == "latency" or event["type"] != "signal"]
    write_logs(root, "date=2026-11-09", kept)
    with pytest.raises(launch.LaunchError, match=why):
        launch.start(root, by="ada")
    assert registry_of(root).state().running() is None
    assert not (root / ".flywheel/cache/looks").exists()
    few = [event for event in kept if event.get("conversation_id", "").endswith("007")]
    write_logs(root, "date=2026-11-09", few)  # may be chance
    launch.start(root, by="ada")


def test_a_place_that_begins_with_a_variable_is_refused(root: Path) -> None:
    """It was taken for a folder: no look could ever have read it."""
    set_(root, "ab", events="${EVENTS_URL}")
    with pytest.raises(SettingsError, match=r"events: begin with the scheme"):
        load_settings(root / "params.yaml")


def test_what_is_left_to_a_person_is_told_without_a_password(root: Path) -> None:
    set_(root, "ab", events="postgres://ada:hunter2@db/events")
    settings = load_settings(root / "params.yaml")
    rows = not_reached(root, settings, False, [], [], False, None, False)
    assert ("events for A/B tests (db/events)", "delete their rows there") in rows
    assert "hunter2" not in str(rows)
