"""The commands around a launch, as a person without Airflow uses them."""

import re
from pathlib import Path

import pytest

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online.command_line import call
from tests.online.test_launch import run_launch


def test_from_approval_to_champion_and_back(root: Path) -> None:
    assert "sha256:" in call(registry.app, root, "show")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert tree_digest(root / "models/policy") in shown
    assert file_digest(root / "gate/verdict.json") in shown
    assert "approved" in shown
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    assert re.search(r"until 2\d{3}-\d\d-\d\d \d\d:\d\d UTC", call(ab.app, root, "status"))
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    assert "Depth: messages per exposed user" in call(ab.app, root, "analyze", "--by", "ada")
    assert "Champion: g0001" in call(registry.approve_app, root, "promotion", "--by", "ada")
    history = call(registry.app, root, "history")
    kinds = (
        "bootstrap",
        "approval_launch",
        "experiment_started",
        "analysis",
        "approval_promotion",
        "promoted",
    )
    shown = [line.split("│")[4].strip() for line in history.splitlines() if "│" in line]
    assert [kind for kind in shown if kind] == list(kinds)  # a long detail goes on in the next line
    assert "Champion: base" in call(
        registry.app, root, "rollback", "--champion", "--by", "ada", "--reason", "complaints"
    )


def test_a_no_drops_the_candidate(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    call(ab.app, root, "analyze", "--by", "ada")
    call(registry.approve_app, root, "promotion", "--by", "bob", "--reject")
    state = registry_of(root).state()
    assert state.champion.generation == "base"
    assert state.experiments["g0001"].end_reason == "promotion not approved: reject by bob"


def test_an_invalid_test_is_exit_code_3(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 10))
    assert "at least 20 are needed" in call(ab.app, root, "analyze", "--by", "ada", code=3)
    call(registry.app, root, "rollback", "--by", "ada", "--reason", "too small")
    with pytest.raises(RegistryError, match="no experiment is running"):
        call(registry.app, root, "rollback", "--by", "ada", "--reason", "again")


def test_stopping_overriding_and_looking_at_a_test(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    call(ab.app, root, "override", "wilma", "--arm", "candidate", "--by", "ada")
    write_logs(root, "date=2026-11-09", ab_events(read_json(root / "launch/plan.json"), 200))
    assert "Day 1: go_on" in call(ab.app, root, "check", "--by", "ada")
    shown = call(ab.app, root, "status")
    assert "day 1: go_on" in shown
    assert "overrides for 1 of the staff" in shown
    assert not any(b"wilma" in path.read_bytes() for path in (root / "registry").rglob("*.json"))
    call(ab.app, root, "override", "wilma", "--arm", "drawn", "--by", "ada")
    assert registry_of(root).state().running().overrides == ()
    call(ab.app, root, "stop", "--by", "ada", "--reason", "complaints")
    assert registry_of(root).state().experiments["g0001"].end_reason == "complaints"
    assert "No experiment is running" in call(ab.app, root, "status")


def test_a_harmful_test_is_exit_code_4(root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("planned_users: 10000", "planned_users: 200"))
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200, harmful=True)
    write_logs(root, "date=2026-11-09", events)
    shown = call(ab.app, root, "check", "--by", "ada", code=4)
    assert "worse by -100.0%" in shown
    assert "Next: flywheel ab stop --generation g0001 --by NAME" in shown


def test_after_a_rejection_the_next_step_is_a_no(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200)
    candidates = sorted({e["user_id"] for e in events if e.get("arm") == "candidate"})
    lost = candidates[: len(candidates) * 4 // 5]
    write_logs(
        root, "date=2026-11-09", [e for e in events if e["type"] == "exposure" or e["user_id"] not in lost]
    )
    shown = call(ab.app, root, "analyze", "--by", "ada")
    assert "The rule says: reject." in shown
    assert "Next: flywheel approve promotion --generation g0001 --by NAME --reject" in shown


def test_after_an_invalid_analysis_the_next_step_is_to_stop(root: Path) -> None:
    call(registry.approve_app, root, "launch", "--by", "ada")
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    events = ab_events(read_json(root / "launch/plan.json"), 200)
    exposed = {e["user_id"] for e in events if e.get("arm") == "candidate"}
    gone = set(sorted(exposed)[: len(exposed) * 2 // 3])
    write_logs(root, "date=2026-11-09", [e for e in events if e.get("user_id") not in gone])
    shown = call(ab.app, root, "analyze", "--by", "ada", code=3)
    assert "Next: flywheel ab stop --generation g0001 --by NAME --reason WHY" in shown
