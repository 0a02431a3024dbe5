"""What people have answered goes into the registry, unless they have acted by command meanwhile."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from flywheel_dag.refusals import refusals_end_the_task
from flywheel_dag.workspace import workspace
from flywheel_tasks.storage.registry_state import Approval, Decision, Experiment, State

if TYPE_CHECKING:
    from flywheel_tasks.online.approval import Request


def _answer(answer: dict[str, Any]) -> tuple[Decision, str]:
    """Decision and by whom. An answer of nobody is the default that Airflow takes in the end: a no."""
    if (user := answer["responded_by_user"]) is None:
        return "timeout", "nobody (no answer in time)"
    by = user["name"] if user["name"] == user["id"] else f"{user['name']} ({user['id']})"
    return "approve" if answer["chosen_options"] == ["Approve"] else "reject", by


def after_the_end(ti: Any, test: Experiment, promoted: str | None = None) -> str | None:
    """What follows where a person has ended the test: ``promoted`` after a promotion, else ``rollback``."""
    print(f"the test of {test.plan.generation} has ended already: {test.status}")
    if test.status == "promoted":
        return promoted
    ti.xcom_push(key="reason", value=test.end_reason or test.status)
    return "rollback"


def _said_meanwhile(state: State, request: Request, asked_at: str | None) -> Approval | None:
    """A person's answer to the same question by command, since it was asked: of this model, on this evidence."""
    said = state.approval(request.kind, request.generation)
    if said is None or said.decision == "timeout" or asked_at is None or said.by.startswith("policy: "):
        return None
    same = said.shown == (request.model_digest, request.evidence_digest)
    return said if same and said.at >= datetime.fromisoformat(asked_at) else None


def record_decision(ti: Any, approval: str, then: str) -> str | None:
    """Write an answer to the registry: who, what, when, and the digests that were shown.

    A person may have acted by command while the question stood. Of a test that they have ended nothing is recorded; one
    that they have launched is not ended by silence, nor by a no: that would be to roll back, which nobody was asked. An
    answer that they have given by command since the question was asked stands against silence.

    Returns:
        id of the task that follows: ``then`` after a yes, ``rollback`` after a no; None: nothing follows.
    """
    from flywheel_tasks.online.approval import Request, record_answer, registry_of

    shown = ti.xcom_pull(task_ids=approval, key="shown")
    answer = ti.xcom_pull(task_ids=approval)
    if not shown or not answer:
        raise AirflowFailException(f"{approval} has left no answer")
    (decision, by), request, root = _answer(answer), Request(**shown), workspace()
    with refusals_end_the_task():
        state = registry_of(root).state()
        test = state.tested(request.generation)
        if test is not None and test.status != "running":
            return after_the_end(ti, test, then if request.kind == "promotion" else None)
        if test is not None and request.kind == "launch" and decision == "timeout":
            print(f"the test of {request.generation} runs already: the run goes on with it")
            return then
        asked_at = ti.xcom_pull(task_ids=approval, key="asked_at")
        if decision == "timeout" and (said := _said_meanwhile(state, request, asked_at)):
            decision, by = said.decision, said.by
            print(f"silence leaves what {by} has answered by command: {decision}")
        else:
            record_answer(root, request, decision=decision, by=by, at=answer["responded_at"])
        test = registry_of(root).state().tested(request.generation)
    if decision == "approve":
        return then
    if test is not None and request.kind == "launch":
        raise AirflowFailException(
            f"the {decision} by {by} is recorded, but the test of {request.generation} runs already. To end it: "
            f"flywheel ab stop --generation {request.generation} --by NAME --reason WHY. To go on with it: trigger a "
            "new run of the generation"
        )
    ti.xcom_push(key="reason", value=f"{shown['kind']} not approved: {decision} by {by}")
    return "rollback"
