"""The daily look at a running test: may it go on?"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flywheel_tasks.online import checks
from flywheel_tasks.online.analysis import arm_sums, as_bytes, look_at, running_experiment
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.decision import harms
from flywheel_tasks.online.event_errors import UnreachableEventsError
from flywheel_tasks.online.event_source import of_simulated_users
from flywheel_tasks.online.exposed import Population
from flywheel_tasks.online.kept_spools import drop_others
from flywheel_tasks.online.sums import Sums
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.registry_state import Experiment, GuardrailCheck, Plan, RegistryError, Rule
from flywheel_tasks.traffic.logs import LogsError

# Exports may be late, or being written, as logs may. What never gets right by itself is an error: `unknown` until the
# end would be a test without guardrails.
_UNREADABLE = (LogsError, UnreachableEventsError)


def day_of(experiment: Experiment, now: datetime) -> int:
    """The test day of a moment, 0 for the first."""
    return max(0, (min(now, experiment.ends_at) - experiment.started_at) // timedelta(days=1))


def look_document(
    plan: Plan,
    found: Population | None,
    without: Callable[[Collection[int]], Population] | None = None,
    *,
    simulated: bool = False,
) -> dict[str, Any]:
    """What a look finds: ``result``, ``reasons``, ``users`` and the guardrails' always-valid figures.

    ``stop`` only on harm under the rule's own sequential bound. Without harm a day without logs is ``unknown``, and so
    are too few users, arms that do not fit their shares or a guardrail that the logs cannot measure. The test goes on
    until the analysis judges it. What one arm lacks of a day may look like harm, and no stop is taken back: where a day
    has logs of one arm only, harm is what is harm without it.

    Args:
        plan: of the test.
        found: its users so far; None if there are none.
        without: makes them again without some test days; None: nothing does, and such a day lets nothing stop.
        simulated: whether the users are the demo's: the simulation writes all days in which they do something.
    """
    rule = plan.rule
    if found is None:
        return {"result": "unknown", "reasons": ["nobody was exposed"], "guardrails": {}}
    arms, logs = arm_sums(found), {"logs": dict(found.description)}
    facts = checks.facts(arms, plan)
    # The day of the look may not have any logs yet.
    doubts = [] if simulated else checks.day_faults(found, plan, over=True)
    doubts += checks.exposure_faults(found, plan)
    doubts += checks.size_faults(facts["users"], rule.min_users_per_arm, facts["sample_ratio"]["pvalue"])
    guardrails: dict[str, Any] = {}
    harm: list[str] = []
    if _are_enough(arms, rule):
        doubts += checks.guardrail_faults(arms, rule)
        guardrails, harm = harms(arms, rule)
    if lost := _with_neighbours(() if simulated else checks.one_arm_days(found, plan)):
        harm, whole = [], {} if without is None else arm_sums(without(lost))
        if _are_enough(whole, rule):
            guardrails, harm = harms(whole, rule)
    result = "stop" if harm else "unknown" if doubts else "go_on"
    return {"result": result, "reasons": [*harm, *doubts], "guardrails": guardrails, **facts, **logs}


def _are_enough(arms: Mapping[str, Sums], rule: Rule) -> bool:
    """Whether both arms have the users that harm is judged by."""
    return all(arm in arms and arms[arm].n >= max(2, rule.min_users_per_arm) for arm in checks.ARMS)


def _with_neighbours(days: Iterable[int]) -> set[int]:
    """Test days and those beside them: what is lost of these, as it begins or ends within a day, shows in no count."""
    return {day + beside for day in days for beside in (-1, 0, 1)} - {-1}


def check(root: Path, generation: str, by: str, now: datetime | None = None) -> GuardrailCheck:
    """Look at the running test of a generation and record the look; one a test day is kept, the last, or a stop.

    Args:
        root: the workspace.
        generation: whose test.
        by: who looks.
        now: by default now.

    Returns:
        the look: ``go_on``, ``stop`` or ``unknown``. Logs that cannot be read, and tables that are not there yet or
        cannot be reached just now, are ``unknown`` too. Once a look has said stop, it stands: that look is returned.

    Raises:
        EventsError: ``ab.events`` is malformed, lacks a column, or cannot be read for another lasting reason; or the
            settings name other events than those that the test was started on.
        RegistryError: no test of this generation is running.
    """
    settings, moment = load_settings(root / "params.yaml"), now or datetime.now(UTC)
    experiment = running_experiment(root, generation)
    if stopped := next((item for item in experiment.checks if item.result == "stop"), None):
        return stopped
    registry = registry_of(root)
    drop_others(root, registry.state().all_running())  # of tests that ended on other machines
    try:
        with look_at(root, settings, experiment, moment) as look:
            document = look_document(
                experiment.plan, look.population, look.without, simulated=of_simulated_users(settings)
            )
    except _UNREADABLE as error:
        document = {"result": "unknown", "reasons": [str(error)], "guardrails": {}}
    day = day_of(experiment, moment)
    data = as_bytes({"experiment": experiment.plan.experiment, "day": day, **document})
    digest = bytes_digest(data)
    registry.put_generation(generation, f"look-{digest.removeprefix('sha256:')}.json", data)
    found = GuardrailCheck(
        day=day, at=moment, result=document["result"], digest=digest, reasons=tuple(document["reasons"])
    )
    earlier = next((item for item in experiment.checks if item.day == day), None)
    if earlier is not None and (earlier.digest, earlier.result) == (found.digest, found.result):
        return earlier
    registry.record_check(generation, found, by=by)
    return found


@dataclass(frozen=True)
class Step:
    """What whoever watches a test does next.

    Attributes:
        until: wait until then, and ask again; None: the wait is over.
        stopped: why the test must not go on, or has ended already; None: it is to be analysed, or was promoted.
        promoted: a person has made the candidate champion already: nothing is left to be done.
    """

    until: datetime | None = None
    stopped: str | None = None
    promoted: bool = False


def watch(root: Path, generation: str, by: str, now: datetime | None = None) -> Step:
    """One step of watching a generation's test: a look if one is due.

    All that it knows is in the registry and the logs. So it may be asked again at any time, by another process, after
    any restart. After the end it waits for a day without logs for ``ab.late_logs_hours`` at most.

    Args:
        root: the workspace.
        generation: whose test.
        by: who watches.
        now: by default now.

    Raises:
        RegistryError: there never was a test of this generation.
        EventsError: as :func:`check`.
    """
    moment, settings = now or datetime.now(UTC), load_settings(root / "params.yaml").ab
    experiment = registry_of(root).state().tested(generation)
    if experiment is None:
        raise RegistryError(f"there is no experiment of generation {generation}")
    if experiment.status == "promoted":
        return Step(promoted=True)
    if experiment.status != "running":
        return Step(stopped=experiment.end_reason or f"the test has ended: {experiment.status}")
    every = timedelta(minutes=settings.look_minutes)
    looks = (moment - experiment.started_at) // every
    found = check(root, generation, by, moment) if looks > 0 and moment < experiment.ends_at else None
    stops = [item for item in (*experiment.checks, found) if item is not None and item.result == "stop"]
    if stops:
        why = "; ".join(stops[0].reasons)
        return Step(stopped=f"stopped by a guardrail on day {stops[0].day + 1}: {why}")
    if moment < experiment.ends_at:
        return Step(until=min(experiment.started_at + (looks + 1) * every, experiment.ends_at))
    patience = experiment.ends_at + timedelta(hours=settings.late_logs_hours)
    if moment < patience and lacks_logs(root, generation, moment):
        return Step(until=min(moment + timedelta(hours=1), patience))
    return Step()


def lacks_logs(root: Path, generation: str, now: datetime) -> bool:
    """Whether a day of a test that is over has no logs yet, or those of one arm only: they may be late.

    Those of simulated users never are.
    """
    settings, experiment = load_settings(root / "params.yaml"), running_experiment(root, generation)
    try:
        with look_at(root, settings, experiment, now) as look:
            found = look.population
            if found is None or of_simulated_users(settings):
                return False
            return bool(checks.day_faults(found, experiment.plan))
    except _UNREADABLE:
        return True
