"""The commands around a launch, as a person without Airflow uses them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli import ab, registry
from flywheel_tasks.online.approval import GateBlockedError, registry_of
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online.conftest import write_verdict
from tests.online.test_launch import run_launch


def call(app, root: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words, "--root", str(root)], env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_from_approval_to_champion_and_back(root: Path) -> None:
    assert "sha256:" in call(registry.app, root, "show")
    shown = call(registry.approve_app, root, "launch", "--by", "ada")
    assert tree_digest(root / "models/policy") in shown
    assert file_digest(root / "gate/verdict.json") in shown
    assert "approved" in shown
    run_launch(root)
    call(ab.app, root, "start", "--by", "ada")
    assert "minutes left" in call(ab.app, root, "status")
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
    assert [line.split("│")[4].strip() for line in history.splitlines() if "│" in line] == list(kinds)
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


def test_a_blocked_model_cannot_be_approved(root: Path) -> None:
    write_verdict(root, "block")
    with pytest.raises(GateBlockedError, match=r"win rate above 0\.65"):
        call(registry.approve_app, root, "launch", "--by", "ada")
    assert registry_of(root).state().approvals == ()
