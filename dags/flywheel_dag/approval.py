"""A human gate that is bound to what it shows."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk.exceptions import AirflowFailException


def _ask(operator: ApprovalOperator, task_instance_id: Any) -> str | None:
    """Write the request, and return the body that Airflow holds for it.

    A cleared approval keeps its first request in Airflow 3.3 (apache/airflow#72155); the operator does not
    look.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload

    answer = task_runner.SUPERVISOR_COMMS.send(
        CreateHITLDetailPayload(
            ti_id=task_instance_id,
            options=operator.options,
            subject=operator.subject,
            body=operator.body,
            defaults=operator.defaults,
            params={},
            multiple=False,
            assigned_users=[],
        )
    )
    return getattr(answer, "body", None)


class BoundApproval(ApprovalOperator):
    """Asks for an approval of a request that an earlier task made; no answer in time is a no.

    The request (model, evidence, their digests, the text) is taken as data: nothing in it is rendered as a
    template. What was shown is kept under the XCom key ``shown``, for the task that records the answer. A no
    skips nothing here: it too is recorded, and that task decides what follows.

    Args:
        asks: id of the task whose XCom ``request`` is shown.
        response_timeout: how long to wait.
    """

    template_fields: Collection[str] = ()

    def __init__(self, *, asks: str, response_timeout: timedelta, **kwargs: Any) -> None:
        super().__init__(
            subject="Approve?",
            body="",
            defaults=self.REJECT,
            response_timeout=response_timeout,
            retries=0,
            **kwargs,
        )
        self.asks = asks

    def execute(self, context: Any) -> None:
        """Show the request and wait."""
        ti = context["ti"]
        request = ti.xcom_pull(task_ids=self.asks, key="request")
        if not request:
            raise AirflowFailException(f"{self.asks} has left no request to show")
        self.subject = f"Approve the {request['kind']} of generation {request['generation']}?"
        self.body = request["body"]
        if _ask(self, ti.id) != self.body:
            raise AirflowFailException(
                "Airflow still holds an earlier question of this task, and would show that one. "
                f"Trigger a new run of {request['generation']}: finished stages are not run again"
            )
        ti.xcom_push(key="shown", value=request)
        ti.xcom_push(key="asked_at", value=datetime.now(UTC).isoformat())
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Take the answer, whichever it is."""
        return HITLOperator.execute_complete(self, context, event)
