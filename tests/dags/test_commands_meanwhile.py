"""A person acts by command while the run waits, or a run is triggered again: no test is ended that nobody ended."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.online import launch, promotion
from flywheel_tasks.online.approval import launch_request, promotion_request, registry_of
from flywheel_tasks.online.guardrails import Step, watch
from flywheel_tasks.storage.registry_state import State
from tests.dags.test_tasks import Run
from tests.online.conftest import approve, write_model, write_verdict
from tests.online.test_analysis import launch_and_analyse
from tests.online.test_launch import run_launch

pytestmark = pytest.mark.usefixtures("airflow_home")
ADA = {"id": "1", "name": "ada"}


@pytest.fixture
def workspace(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from flywheel_dag import tasks

    monkeypatch.setenv("FLYWHEEL_ROOT", str(root))
    monkeypatch.setattr(tasks, "_holding", lambda ti, stage: root)
    return root


def state(root: Path) -> State:
    return registry_of(root).state()


def started(root: Path) -> Any:
    """The test of g0001, as a person starts it by command."""
    approve(root)
    run_launch(root)
    return launch.start(root, by="ada")


def answered(shown: Any, user: dict[str, str] | None, option: str = "Reject") -> tuple[Run, str | None]:
    """The run after an answer, or after none in time, and the task that follows."""
    from flywheel_dag import answers

    run, approval = Run("g0001"), f"approve_{shown.kind}"
    run.told[approval, "shown"] = asdict(shown)
    run.told[approval, "return_value"] = {
        "chosen_options": [option],
        "responded_at": datetime.now(UTC),
        "responded_by_user": user,
    }
    then = {"launch": "launch", "promotion": "promote"}[shown.kind]
    return run, answers.record_decision(run, approval, then)


def test_a_run_of_a_generation_whose_test_runs_asks_nobody_about_the_launch(workspace: Path) -> None:
    from flywheel_dag import tasks

    run = Run("g0001")
    assert tasks.check_gate(run, "run-1") == "approve_launch"
    assert run.told["pushed", "request"]["kind"] == "launch"
    test = started(workspace)
    (workspace / "gate/approval.md").unlink()  # it is not needed, since nobody is asked
    run = Run("g0001")
    assert tasks.check_gate(run, "run-2") == "launch"
    assert ("pushed", "request") not in run.told
    assert tasks.start_ab_test(run, "run-2") == test.ends_at.isoformat()


@pytest.mark.parametrize("over", [False, True])
def test_a_run_of_a_generation_that_had_its_test_asks_nobody(
    workspace: Path, failure: type[Exception], over: bool
) -> None:
    from flywheel_dag import tasks

    started(workspace)
    if over:
        promotion.rollback(workspace, "g0001", "complaints", by="ada")
    else:
        write_model(workspace, "made again")
        write_verdict(workspace)
    history = registry_of(workspace).history()
    with pytest.raises(failure, match="has been tested already" if over else "runs already, of model"):
        tasks.check_gate(Run("g0001"), "run-2")
    assert registry_of(workspace).history() == history


def test_silence_does_not_end_a_test_that_was_started_meanwhile(workspace: Path) -> None:
    shown = launch_request(workspace)
    test = started(workspace)
    run, follows = answered(shown, None)
    assert (follows, ("pushed", "reason") in run.told) == ("launch", False)
    assert [answer.decision for answer in state(workspace).approvals] == ["approve"]
    assert state(workspace).running("g0001") == test


def test_a_no_to_a_launch_that_has_happened_is_recorded_and_fails(
    workspace: Path, failure: type[Exception]
) -> None:
    shown = launch_request(workspace)
    test = started(workspace)
    with pytest.raises(failure, match=r"reject by ada .* is recorded, but .* flywheel ab stop"):
        answered(shown, ADA)
    assert state(workspace).approvals[-1].decision == "reject"
    assert state(workspace).running("g0001") == test


def test_a_no_to_a_launch_never_ends_a_test_that_was_started_after_it(workspace: Path) -> None:
    from flywheel_dag import tasks

    run, follows = answered(launch_request(workspace), ADA)
    assert follows == "rollback"
    run.told["record_launch_decision", "reason"] = run.told["pushed", "reason"]
    test = started(workspace)  # somebody thought better of it
    assert tasks.rollback(run, "run-1") == "launch not approved: reject by ada (1)"
    assert state(workspace).running("g0001") == test


@pytest.mark.parametrize("promoted", [True, False])
def test_an_answer_about_a_test_that_a_person_has_ended_is_not_recorded(
    workspace: Path, promoted: bool
) -> None:
    from flywheel_dag import tasks

    asked_first = launch_request(workspace)
    launch_and_analyse(workspace, 200)
    shown = promotion_request(workspace, "g0001")
    end(workspace, promoted)
    before = registry_of(workspace).history()
    for user, option in ((None, "Reject"), (ADA, "Reject"), (ADA, "Approve")):
        run, follows = answered(shown, user, option)
        assert follows == ("promote" if promoted else "rollback")
        assert answered(asked_first, user, option)[1] == (None if promoted else "rollback")
    if promoted:
        assert tasks.promote(run, "run-1") == shown.model_digest
    else:
        run.told["record_promotion_decision", "reason"] = run.told["pushed", "reason"]
        assert tasks.rollback(run, "run-1") == "complaints"
    assert registry_of(workspace).history() == before


def end(root: Path, promoted: bool) -> None:
    """End the analysed test of g0001 as the commands do."""
    if promoted:
        approve(root, "promotion")
        promotion.promote(root, "g0001", by="ada")
    else:
        promotion.rollback(root, "g0001", "complaints", by="ada")


@pytest.mark.parametrize("promoted", [True, False])
def test_whoever_watches_or_analyses_a_test_that_a_person_has_ended_ends_quietly(
    workspace: Path, promoted: bool
) -> None:
    from flywheel_dag import tasks
    from flywheel_dag.watch import WatchTest

    launch_and_analyse(workspace, 200)
    end(workspace, promoted)
    before = registry_of(workspace).history()
    assert watch(workspace, "g0001", "a") == (Step(promoted=True) if promoted else Step(stopped="complaints"))
    watching = WatchTest(task_id="watch_ab", then="analyze_ab", otherwise="rollback")
    follows = None if promoted else "rollback"
    assert watching.choose_branch({"ti": Run("g0001"), "run_id": "run-1"}) == follows
    run = Run("g0001")
    assert tasks.analyze_ab(run, "run-1") == follows
    assert run.told.get(("pushed", "reason")) == (None if promoted else "complaints")
    assert registry_of(workspace).history() == before
