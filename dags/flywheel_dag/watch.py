"""The wait for the end of an A/B test, with looks at its guardrails."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.providers.standard.triggers.temporal import DateTimeTrigger

from flywheel_dag import tasks


class WatchTest(BaseBranchOperator):
    """Looks when a look is due, and takes no worker in between (it needs the triggerer).

    What it knows is in the registry, so it goes on after any restart, and a retry repeats nothing.

    Args:
        then: id of the task that follows the end of the test.
        otherwise: id of the task that follows a test that was stopped.
    """

    def __init__(self, *, then: str, otherwise: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.then = then
        self.otherwise = otherwise

    def choose_branch(self, context: Any) -> str | None:
        """The task that follows, none after a promotion; defers until the next look if the test goes on."""
        step = tasks.watch_ab(context["ti"], context["run_id"])
        if step.until is not None:
            self.defer(trigger=DateTimeTrigger(moment=step.until), method_name="resume")
        if step.promoted:
            return None
        return self.then if step.stopped is None else self.otherwise

    def resume(self, context: Any, event: Any = None) -> Any:
        """Go on after a wait."""
        return self.do_branch(context, self.choose_branch(context))
