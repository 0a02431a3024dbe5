"""What the tasks call: the library, imported when a task runs and not when the DAG is parsed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from flywheel_dag.answers import after_the_end
from flywheel_dag.refusals import refusals_end_the_task
from flywheel_dag.workspace import workspace

# After a look that could tell nothing, such as one at logs that could not be read.
_LOOK_AGAIN = timedelta(hours=1)
_LABELS = "labels"  # inputs/labels.json as the stage label has read it


def choose_generation(params: dict[str, Any], run_id: str) -> str:
    """The generation of this run: the trigger form's, or the next one. A retry, or a cleared run, keeps the choice."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.pipeline.generation_ids import id_of_run

    root = workspace()
    return params["generation"] or id_of_run(root, registry_of(root), run_id)


def simulate_traffic(ti: Any) -> None:
    """Let the demo's users write the logs, unless the generation has been opened with them."""
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.pipeline import local

    root, generation = workspace(), _generation(ti)
    if generation not in registry_of(root).generations():
        local.simulate_traffic(root, generation, print)


def open_generation(ti: Any, params: dict[str, Any]) -> str:
    """Pin the champion and the newest logs, and push the champion: a worker elsewhere starts from it, too."""
    from flywheel_tasks.pipeline import generation, runner

    root = workspace()
    opened = generation.open_generation(root, generation=_generation(ti), seed=params["seed"])
    runner.push(root, ["inputs/champion.dvc"])
    return opened


def run_stage(ti: Any, stage: str, params: dict[str, Any], run_id: str) -> dict[str, Any]:
    """Run one stage of this run's generation through DVC, on what this run has made, and push what it makes.

    Returns:
        what ``dvc.lock`` says of it, with the hashes of what it made: the stages after it read nothing else.
    """
    from flywheel_tasks.pipeline import generation, lineage, runner
    from flywheel_tasks.pipeline.generation_ids import BusyError, GenerationError
    from flywheel_tasks.pipeline.graph import ancestors, load_graph
    from flywheel_tasks.storage.registry_state import RegistryError

    root, wanted = workspace(), _generation(ti)
    graph = load_graph(root / "dvc.yaml")
    before = ancestors(graph, stage)
    made = {parent: _made(ti, parent) for parent in before}
    try:
        generation.hold(root, wanted, params["seed"])
        if stage == "label":
            ti.xcom_push(key=_LABELS, value=generation.refresh_labels(root))
        elif "label" in before and (pinned := ti.xcom_pull(task_ids="label", key=_LABELS)):
            # A checkout of its own may know of other labels: DVC would not find there what was made of these.
            generation.take_labels(root, pinned)
        force = run_id if stage in (params["force"] or ()) else None
        runner.run(root, stage, force_once=force, made=made)
    except BusyError:
        raise  # whoever works here may be done by the next try
    except (GenerationError, RegistryError, runner.LostDataError, runner.OtherDataError) as error:
        raise AirflowFailException(f"this worker cannot work on {wanted}: {error}") from error
    return lineage.part_of(root, stage)


def _made(ti: Any, stage: str) -> dict[str, Any]:
    """What a stage of this run has made, as :func:`run_stage` told."""
    found = ti.xcom_pull(task_ids=stage)
    if not isinstance(found, dict) or "outs" not in found:
        raise AirflowFailException(
            f"stage {stage} has not run in this run, so nobody knows what it made: clear it, and this task"
        )
    return found


def _holding(ti: Any, stage: str) -> Path:
    """The workspace, which must hold this run's generation, and of a stage what this run has made."""
    from flywheel_tasks.pipeline import lineage
    from flywheel_tasks.pipeline.generation_ids import held_instead
    from flywheel_tasks.pipeline.leftovers import clear_leftovers

    root, wanted = workspace(), _generation(ti)
    clear_leftovers(root)
    if other := held_instead(root, wanted):
        raise AirflowFailException(
            f"{root} holds {other}, this run is of {wanted}: all workers of the queue cpu share one checkout, and only "
            f"one generation at a time is worked on there. Trigger a new run of {wanted}"
        )
    if others := lineage.others(root, {stage: _made(ti, stage)}):
        raise AirflowFailException(
            f"{', '.join(others)} in {root} is not what stage {stage} made in this run: all workers of the "
            "queue cpu share one checkout. Clear the stage, and this task"
        )
    return root


def wait_for_labels(ti: Any) -> bool:
    """Hand out what is missing and fetch what is done; true when people have labelled enough."""
    from flywheel_tasks.annotation.round_trip import labels_ready

    found = labels_ready(_holding(ti, "annotation_batch"))
    print(
        f"{found['done']:.0%} of the tasks are done; {found['labels']} of {found['read']} labels are usable"
    )
    return bool(found["enough"])


def check_gate(ti: Any, run_id: str) -> str:
    """Leave the question for the approver; a model that nobody may launch is declined, and the task fails at once.

    That is one that the gate blocks, and one that another champion came before. A model whose test runs, as of an
    earlier run of the generation, was approved: nobody is asked again, whose silence would be a no to it. Whatever the
    gate says, whose data trained the generation's models is recorded first: they are there.

    Returns:
        id of the task that follows.
    """
    from flywheel_tasks.online.approval import GateBlockedError, SupersededError, launch_request
    from flywheel_tasks.online.launch import running_test
    from flywheel_tasks.online.promotion import decline, decline_blocked
    from flywheel_tasks.pipeline.trained_on import record

    root, by = _holding(ti, "gate"), f"airflow: {run_id}"
    record(root, _generation(ti))
    with refusals_end_the_task():
        try:
            if running_test(root) is not None:
                print(f"the test of {_generation(ti)} runs already: the run goes on with it")
                return "launch"
            request = launch_request(root)
        except GateBlockedError:
            decline_blocked(root, by)
            raise
        except SupersededError as error:
            decline(root, _generation(ti), str(error), by)
            raise
    if request.generation != _generation(ti):
        raise AirflowFailException(
            f"the verdict is of {request.generation}, this run is of {_generation(ti)}"
        )
    ti.xcom_push(key="request", value=asdict(request))
    return "approve_launch"


def start_ab_test(ti: Any, run_id: str) -> str:
    """Start the approved A/B test; returns its end (ISO 8601) as the registry has it, also when retried."""
    from flywheel_tasks.online.launch import start

    with refusals_end_the_task():
        return start(_holding(ti, "launch"), by=f"airflow: {run_id}").ends_at.isoformat()


def simulate_ab_traffic() -> None:
    """Let the demo's users talk to both arms."""
    from flywheel_tasks.online.simulated import simulate_ab

    simulate_ab(workspace())


def watch_ab(ti: Any, run_id: str) -> Any:
    """Look at the running test if a look is due; leaves the reason if it was stopped.

    Returns:
        a :class:`flywheel_tasks.online.guardrails.Step`. A look that could tell nothing is repeated soon.
    """
    from flywheel_tasks.online.approval import registry_of
    from flywheel_tasks.online.guardrails import Step, watch

    root, generation = workspace(), _generation(ti)
    step = watch(root, generation, by=f"airflow: {run_id}")
    if step.stopped is not None:
        ti.xcom_push(key="reason", value=step.stopped)
        return step
    test = registry_of(root).state().running(generation)
    if step.until is not None and test is not None and test.checks and test.checks[-1].result == "unknown":
        return Step(until=min(step.until, datetime.now(UTC) + _LOOK_AGAIN))
    return step


def analyze_ab(ti: Any, run_id: str) -> str | None:
    """Analyse the A/B test and leave the question for the approver.

    An invalid test asks nobody, nor does one whose rule rejects the candidate: the registry would refuse a yes.

    Returns:
        id of the task that follows; None: a person has promoted the candidate already.
    """
    from flywheel_tasks.online.analysis import analyse
    from flywheel_tasks.online.approval import promotion_request, registry_of

    root, generation = workspace(), _generation(ti)
    with refusals_end_the_task():
        test = registry_of(root).state().tested(generation)
        if test is not None and test.status != "running":
            return after_the_end(ti, test)
        found = analyse(root, generation, by=f"airflow: {run_id}")
        if found["result"] != "valid":
            ti.xcom_push(key="reason", value=f"invalid A/B test: {'; '.join(found['reasons'])}")
            return "rollback"
        if found["advice"] == "reject":
            why = "; ".join(found["advice_reasons"])
            ti.xcom_push(key="reason", value=f"the A/B test rejects the candidate: {why}")
            return "rollback"
        ti.xcom_push(key="request", value=asdict(promotion_request(root, generation)))
    return "approve_promotion"


def promote(ti: Any, run_id: str) -> str:
    """Make the candidate champion; returns its digest.

    The task ``rollback`` is skipped by now. So a candidate whose promotion the registry refuses is rolled back here,
    and the task fails with the reason: nobody is served what will not become champion.
    """
    from flywheel_tasks.online import promotion
    from flywheel_tasks.storage.registry_state import RegistryError

    root, generation, by = workspace(), _generation(ti), f"airflow: {run_id}"
    with refusals_end_the_task():
        try:
            return promotion.promote(root, generation, by=by).digest
        except RegistryError as refusal:
            reason = f"the promotion is refused: {refusal}"
            promotion.rollback(root, generation, reason, by=by)
            raise AirflowFailException(f"{reason}. The candidate is rolled back") from refusal


def rollback(ti: Any, run_id: str) -> str:
    """Drop the candidate and record why; returns the reason.

    After a no to the launch the model is declined, which ends no test: it may have been launched since.
    """
    from flywheel_tasks.online import promotion

    deciders = ("record_promotion_decision", "analyze_ab", "watch_ab", "record_launch_decision")
    reasons = {decider: ti.xcom_pull(task_ids=decider, key="reason") for decider in deciders}
    decider = next((name for name in deciders if reasons[name]), None)
    if decider is None:
        raise AirflowFailException("no task has left a reason to roll back")
    drop = promotion.decline if decider == "record_launch_decision" else promotion.rollback
    with refusals_end_the_task():
        drop(workspace(), _generation(ti), reasons[decider], by=f"airflow: {run_id}")
    return str(reasons[decider])


def _generation(ti: Any) -> str:
    return str(ti.xcom_pull(task_ids="choose_generation"))
