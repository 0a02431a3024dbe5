"""The events of a test are tried before it starts: what no look could read, or judge a guardrail by, stays so."""

from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from flywheel_tasks.online.checks import GIVEN
from flywheel_tasks.online.event_errors import EventsError, UnreachableEventsError
from flywheel_tasks.online.event_source import of_simulated_users
from flywheel_tasks.online.exposed import TAKEN, reserved
from flywheel_tasks.online.log_events import open_events, refuse_a_warehouse_as_logs
from flywheel_tasks.online.metrics import METRICS
from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.experiment_records import Plan
from flywheel_tasks.traffic.log_window import partition_date
from flywheel_tasks.traffic.logs import LogsError, list_logs

# Replies that must all be without a latency, or without any signal, before that is how a product logs: refusals and the
# champion's in place of a failing model have no latency, and few users give signals.
_TIMED_ENOUGH, _SIGNALLED_ENOUGH = 20, 500


def try_events(settings: Settings, root: Path, plan: Plan) -> None:
    """Open the events of a test that is about to start, once: they may come later, but what is wrong stays wrong.

    Args:
        settings: all settings.
        root: the workspace.
        plan: of the test.

    Raises:
        EventsError: as :func:`flywheel_tasks.online.log_events.open_events`, but for what is not there yet or cannot be
            reached just now; the exposures lack a column of ``ab.segments``; or the raw logs of the days before never
            have what a guardrail is measured by.
    """
    if settings.ab.events == "logs":
        refuse_a_warehouse_as_logs(settings)
        if not of_simulated_users(settings):
            with suppress(
                LogsError
            ):  # logs that are not there yet, or cannot be read now, are so to the looks, too
                _try_logs(settings, root, plan)
        return
    with suppress(UnreachableEventsError), open_events(settings, root, plan) as events:
        for table in (events.exposures, events.activity):
            table.limit(0).to_pyarrow()  # the database checks columns and rights, and reads no rows
        if taken := reserved(settings.ab.segments):
            raise EventsError(TAKEN.format(", ".join(taken)))
        if unknown := [name for name in settings.ab.segments if name not in events.segment_columns]:
            known = ", ".join(events.segment_columns) or "none"
            raise EventsError(
                f"ab.segments: table exposures has no column {', '.join(unknown)}; it has, beyond its own: {known}"
            )


def _try_logs(settings: Settings, root: Path, plan: Plan) -> None:
    """Look whether the newest raw logs, of as many days as a test reads of before it, have what guardrails need."""
    location, rule = settings.logs.location, plan.rule
    signalled = [name for name in rule.guardrails if METRICS[name].numer in GIVEN]
    if not signalled and "latency_ms" not in rule.guardrails:
        return
    names = list_logs(location, root)
    if not names:
        return
    newest = max(partition_date(name) for name in names)
    days = (newest - timedelta(days=rule.pre_days), newest)
    with open_events(settings, root, None, days=days) as events:  # of no test: nothing of it is kept
        acts = events.activity
        acts = acts.filter(acts.source.isin(rule.include_sources))
        replies, timed, signals = (
            acts.aggregate(
                replies=acts.count(where=acts.kind == "reply"),
                timed=acts.milliseconds.count(where=acts.kind == "reply"),
                signals=acts.count(where=acts.kind.isin(GIVEN)),
            )
            .to_pyarrow()
            .to_pylist()[0]
            .values()
        )
    of = f"of {replies} replies in the newest days of {location}"
    if "latency_ms" in rule.guardrails and not timed and replies >= _TIMED_ENOUGH:
        raise EventsError(
            f"ab.events: logs: none {of} has a latency_ms, which is a guardrail of the test; take it out of "
            "ab.guardrails, and run stage launch again (flywheel generation run), where no latency is logged"
        )
    if signalled and not signals and replies >= _SIGNALLED_ENOUGH:
        raise EventsError(
            f"ab.events: logs: on none {of} was any signal given ({', '.join(GIVEN)}), which guardrails of the test "
            f"are told by; take {', '.join(signalled)} out of ab.guardrails, and run stage launch again (flywheel "
            "generation run), where users have no way to give any"
        )
