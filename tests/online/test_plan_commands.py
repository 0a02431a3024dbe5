"""The size of a test, planned by a command from past logs."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.design import DesignError, make_design
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json
from tests.dags.small import ab_events, write_logs
from tests.online import people
from tests.online.command_line import call
from tests.online.test_launch import run_launch


def test_a_plan_from_past_logs_becomes_the_rule_of_the_test(root: Path) -> None:
    past = {
        "salt": "s",
        "experiment": "past",
        "arms": [{"name": "control", "share": 0.5}, {"name": "candidate", "share": 0.5}],
    }
    write_logs(root, "date=2026-11-09", ab_events(past, 300))
    with pytest.raises(DesignError, match="must not be zero"):
        call(ab.app, root, "plan", "--lift", "0")
    shown = call(ab.app, root, "plan", "--lift", "20", "--write")
    assert "depth" in shown
    assert "Simulated" in shown
    design = read_json(root / "launch/design.json")
    assert load_settings(root / "params.yaml").ab.planned_users == design["planned_users"] > 40
    smaller = call(ab.app, root, "plan", "--lift", "5")
    assert smaller
    assert read_json(root / "launch/design.json")["planned_users"] > 10 * design["planned_users"]
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    rule = registry_of(root).state().running().plan.rule
    assert rule.planned_users == design["planned_users"]
    assert design["rule"] | {"planned_users": rule.planned_users} == rule.model_dump(mode="json")
    # What params.yaml says later changes nothing.
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("alpha: 0.05", "alpha: 0.2"))
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada")
    assert read_json(root / "launch/analysis.json")["rule"]["alpha"] == 0.05


@pytest.mark.parametrize("source", ["files", "simulated"])
def test_a_few_messages_with_a_wrong_clock_do_not_move_the_past(root: Path, source: str) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", f"source: {source}"))
    past = {"salt": "s", "experiment": "past", "arms": people.make_plan().model_dump(mode="json")["arms"]}
    days = 1 if source == "files" else 3
    for day in range(days):
        start = people.START + timedelta(days=day)
        events = ab_events(past, 200, start=start, name=f"d{day}")
        write_logs(root, f"date={start:%Y-%m-%d}", events)
    now = people.START + timedelta(days=days)
    right = make_design(root, lift_percent=10, power=0.8, now=now)
    said = [event for event in events if event["type"] == "message"]
    wrong = [
        event | dict.fromkeys(("event_id", "message_id", "conversation_id"), f"w{number}") | {"time": time}
        for number, (event, time) in enumerate(
            (event, f"2031-01-0{day}T00:00:00Z") for day in (1, 2, 3) for event in said[: 4 - day]
        )
    ]
    write_logs(root, "date=2026-11-08", wrong)
    found = make_design(root, lift_percent=10, power=0.8, now=now)
    assert (right["past"].pop("later_events"), found["past"].pop("later_events")) == (0, 6)
    assert found["past"].pop("logs") != right["past"].pop("logs")
    assert found == right
    if source == "simulated":  # the other goes by the clock on the wall
        assert "Left out: 6 events" in call(ab.app, root, "plan", "--lift", "10")


def test_a_plan_is_the_same_at_every_hour_of_a_day(root: Path) -> None:
    """Today is not over: a part of it would count as a whole day."""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("source: simulated", "source: files"))
    past = {"salt": "s", "experiment": "past", "arms": people.make_plan().model_dump(mode="json")["arms"]}
    today = people.START
    begun = ab_events(past, 60, start=today, name="today")
    write_logs(root, f"date={today:%Y-%m-%d}", begun)
    alone = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=20))
    assert alone["past"]["later_events"] == 0  # where there is no other day
    yesterday = today - timedelta(days=1)
    write_logs(root, f"date={yesterday:%Y-%m-%d}", ab_events(past, 200, start=yesterday, name="yesterday"))
    plan = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=20))
    shutil.rmtree(root / f"data/logs/date={today:%Y-%m-%d}")
    over = make_design(root, lift_percent=10, power=0.8, now=today + timedelta(hours=1))
    assert (plan["metrics"], plan["planned_users"]) == (over["metrics"], over["planned_users"])
    assert plan["past"]["users"] == over["past"]["users"]
    assert plan["past"]["later_events"] == len([event for event in begun if event["type"] != "exposure"])
