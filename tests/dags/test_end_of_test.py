"""The tasks that start, judge and end an A/B test: no harmful arm stays served, and an outage ends no run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.online import analysis, approval, launch, promotion
from flywheel_tasks.online.approval import Request, promotion_request, registry_of
from flywheel_tasks.online.event_errors import EventsError, OtherEventsError, UnreachableEventsError
from flywheel_tasks.online.exposed import PopulationError
from flywheel_tasks.pipeline.model_files import ModelFilesError
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry_state import OvertakenError, RegistryError
from flywheel_tasks.traffic.logs import LogsError
from tests.dags.test_tasks import Run
from tests.online.conftest import approve
from tests.online.test_analysis import launch_and_analyse

pytestmark = pytest.mark.usefixtures("airflow_home")


@pytest.fixture
def workspace(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLYWHEEL_ROOT", str(root))
    return root


def analysed_as(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    document = {"result": "valid", "reasons": [], "advice_reasons": ["depth is significantly worse"], **found}
    monkeypatch.setattr(analysis, "analyse", lambda root, generation, by: document)


def test_a_test_that_rejects_the_candidate_asks_nobody(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flywheel_dag import tasks

    launch_and_analyse(workspace, 200)
    run = Run("g0001")
    analysed_as(monkeypatch, advice="reject")
    assert tasks.analyze_ab(run, "run-1") == "rollback"
    reason = run.told["pushed", "reason"]
    assert reason == "the A/B test rejects the candidate: depth is significantly worse"
    assert ("pushed", "request") not in run.told
    for advice in ("promote", "inconclusive"):
        analysed_as(monkeypatch, advice=advice)
        monkeypatch.setattr(approval, "promotion_request", request)
        assert tasks.analyze_ab(Run("g0001"), "run-1") == "approve_promotion"
    run.told["analyze_ab", "reason"] = reason
    assert tasks.rollback(run, "run-1") == reason
    assert registry_of(workspace).state().experiments["g0001"].end_reason == reason


def request(root: Path, generation: str) -> Request:
    return Request("promotion", generation, "m", "e", "body")


def test_a_candidate_whose_promotion_is_refused_is_rolled_back(
    workspace: Path,
    failure: type[Exception],
) -> None:
    from flywheel_dag import tasks

    launch_and_analyse(workspace, 200)
    approve(workspace, "promotion")
    approve(workspace, "promotion", "reject")  # after the run had read the yes
    for _ in range(2):  # a kill before the task has failed
        with pytest.raises(failure, match=r"the promotion is refused: .* The candidate is rolled back"):
            tasks.promote(Run("g0001"), "run-1")
        state = registry_of(workspace).state()
        assert (state.champion.generation, state.running("g0001")) == ("base", None)
        assert "was not approved: reject by ada" in state.experiments["g0001"].end_reason
    assert len(list((workspace / "registry/generations/g0001").glob("README-*.md"))) == 1


def test_a_model_that_dvc_does_not_bring_now_is_neither_promoted_nor_dropped(workspace: Path) -> None:
    """A remote may be out of reach: the task is tried again."""
    from flywheel_dag import tasks

    launch_and_analyse(workspace, 200)
    approve(workspace, "promotion")
    (workspace / "models/policy/model.safetensors").write_text("another")
    with pytest.raises(ModelFilesError, match="DVC does not bring it"):
        tasks.promote(Run("g0001"), "run-1")
    assert registry_of(workspace).state().running("g0001") is not None


def test_a_model_that_another_champion_came_before_is_declined(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    """Nobody may launch it; undecided it would keep DVC's cache from being freed for ever."""
    from flywheel_dag import tasks

    monkeypatch.setattr(tasks, "_holding", lambda ti, stage: workspace)
    inputs = read_json(workspace / "inputs/generation.json")
    inputs["champion"] = {"model": "g0000", "digest": "sha256:" + "9" * 64}
    write_json(inputs, workspace / "inputs/generation.json")
    with pytest.raises(failure, match="g0001 was made from g0000, which is not champion any more"):
        tasks.check_gate(Run("g0001"), "run-1")
    last = registry_of(workspace).history()[-1]
    assert (last.kind, last.by, last.detail["generation"]) == ("declined", "airflow: run-1", "g0001")
    (card,) = (workspace / "registry/generations/g0001").glob("README-*.md")
    assert "Not launched: g0001 was made from g0000" in card.read_text()


def start(run: Run) -> Any:
    from flywheel_dag import tasks

    return tasks.start_ab_test(run, "run-1")


def analyse(run: Run) -> Any:
    from flywheel_dag import tasks

    return tasks.analyze_ab(run, "run-1")


def decide(run: Run) -> Any:
    from flywheel_dag import answers

    run.told["approve_promotion", "shown"] = asdict(request(Path(), "g0001"))
    run.told["approve_promotion", "return_value"] = {
        "chosen_options": ["Approve"],
        "responded_at": datetime(2026, 11, 9, tzinfo=UTC),
        "responded_by_user": {"id": "1", "name": "ada"},
    }
    return answers.record_decision(run, "approve_promotion", "promote")


def promote(run: Run) -> Any:
    from flywheel_dag import tasks

    return tasks.promote(run, "run-1")


def roll_back(run: Run) -> Any:
    from flywheel_dag import tasks

    run.told["watch_ab", "reason"] = "harm"
    return tasks.rollback(run, "run-1")


@pytest.mark.parametrize(
    ("task", "asks"),
    [
        (start, (launch, "start")),
        (analyse, (analysis, "analyse")),
        (decide, (approval, "record_answer")),
        (promote, (promotion, "promote")),
        (roll_back, (promotion, "rollback")),
    ],
)
def test_what_is_refused_fails_at_once_and_an_outage_is_outlasted(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    task: Callable[[Run], Any],
    asks: tuple[Any, str],
) -> None:
    from flywheel_dag import tasks

    monkeypatch.setattr(tasks, "_holding", lambda ti, stage: workspace)
    monkeypatch.setattr(promotion, "rollback", lambda *_, **__: None)
    with raising(monkeypatch, asks, ConnectionError("s3 cannot be reached")), pytest.raises(ConnectionError):
        task(Run("g0001"))
    with raising(monkeypatch, asks, RegistryError("no, never")), pytest.raises(failure, match="no, never"):
        task(Run("g0001"))


@contextmanager
def raising(monkeypatch: pytest.MonkeyPatch, asks: tuple[Any, str], error: Exception) -> Iterator[None]:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(*asks, fails)
        yield


def test_a_start_that_another_test_came_before_is_tried_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flywheel_dag import tasks

    monkeypatch.setattr(tasks, "_holding", lambda ti, stage: workspace)
    with (
        raising(monkeypatch, (launch, "start"), OvertakenError("start again")),
        pytest.raises(OvertakenError),
    ):
        start(Run("g0001"))


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (PopulationError("ab.segments: the exposures have no column platfrom"), True),
        (EventsError("ab.events: table signals lacks the columns signal"), True),
        (OtherEventsError("test g0001 was started on others"), True),
        (UnreachableEventsError("ab.events: db cannot be reached"), False),
        (LogsError("s3://logs: cannot be listed"), False),
    ],
)
def test_an_analysis_that_only_a_person_can_mend_fails_at_once(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    error: Exception,
    for_good: bool,
) -> None:
    with (
        raising(monkeypatch, (analysis, "analyse"), error),
        pytest.raises(failure if for_good else type(error), match=str(error)) as raised,
    ):
        analyse(Run("g0001"))
    assert isinstance(raised.value, failure) == for_good


def test_a_promotion_that_nothing_stands_against_is_made(workspace: Path) -> None:
    launch_and_analyse(workspace, 200)
    shown = promotion_request(workspace, "g0001")
    approve(workspace, "promotion")
    assert promote(Run("g0001")) == shown.model_digest
    assert promote(Run("g0001")) == shown.model_digest
