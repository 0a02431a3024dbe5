"""The analysis of an A/B test: lifts with intervals, or the reasons why it proves nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import orjson

from flywheel_tasks.online import checks
from flywheel_tasks.online.approval import analysis_name, registry_of
from flywheel_tasks.online.decision import advise, harms, segment_lifts
from flywheel_tasks.online.event_errors import OtherEventsError
from flywheel_tasks.online.event_source import of_simulated_users, read_from
from flywheel_tasks.online.exposed import Population, Window, log_window, population, without_days
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.online.metrics import METRICS, compare, decisive, figures, lift_percent, pairs
from flywheel_tasks.online.sums import Sums, sums_by
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import finite
from flywheel_tasks.storage.registry_state import Analysis, Experiment, Plan, RegistryError

ANALYSIS = "launch/analysis.json"


@dataclass(frozen=True)
class Look:
    """A test as the logs have it at one moment.

    Attributes:
        population: its users; None if the logs, on their own clock, know of nobody.
        ends_at: when the test ends, on the clock of the logs.
        over: whether that has passed.
        without: makes the population again without what some test days hold (numbers from 0), of either arm.
    """

    population: Population | None
    ends_at: datetime
    over: bool
    without: Callable[[Collection[int]], Population]


@contextmanager
def look_at(
    root: Path, settings: Settings, experiment: Experiment, now: datetime, segments: tuple[str, ...] = ()
) -> Iterator[Look]:
    """Read what a running test has come to.

    Args:
        root: the workspace.
        settings: all settings.
        experiment: the running one.
        now: the moment; what is later does not count, nor what is later than the test's end.
        segments: columns of the exposures that become columns of the users.

    Raises:
        LogsError: the logs cannot be read.
        OtherEventsError: they are not those that the test was started with.
    """
    plan, rule = experiment.plan, experiment.plan.rule
    if plan.read_from and plan.read_from != (now_says := read_from(settings)):
        raise OtherEventsError(
            f"params.yaml: test {plan.experiment} was started on {plan.read_from}; now it says {now_says}. "
            "Put it back: a test is judged by the events that it was started on"
        )
    by_logs = of_simulated_users(settings)
    window = Window(experiment.started_at, experiment.ends_at).until(now)
    days: tuple[date, date] | None = None
    if not by_logs:
        first = (window.start - timedelta(days=rule.pre_days)).astimezone(UTC).date()
        days = (first, window.end.astimezone(UTC).date())
    with open_events(settings, root, plan, experiment.overrides, days) as events:
        told = log_window(events, settings.simulation.days) if by_logs else window

        def without(left_out: Collection[int]) -> Population:
            assert told is not None
            return population(without_days(events, told, left_out), told, rule, segments)

        yield Look(
            population=None if told is None else population(events, told, rule, segments),
            ends_at=told.end if by_logs and told is not None else experiment.ends_at,
            over=by_logs or now >= experiment.ends_at,
            without=without,
        )


def arm_sums(found: Population) -> dict[str, Sums]:
    """Sums of the two arms; an arm that nobody saw is missing."""
    by_arm = sums_by(found.users, ["arm"], pairs())
    return {arm: by_arm[(arm,)] for arm in checks.ARMS if (arm,) in by_arm}


def _by_day(found: Population, plan: Plan) -> list[dict[str, Any]]:
    """Breadth and depth, cumulative, as they stood at the end of each test day."""
    rows = []
    for day in range(found.window.days):
        users = found.users.filter(found.users.day <= day)
        so_far: Any = ibis.literal(0, "int64")
        for earlier in range(day + 1):
            so_far = so_far + users[f"messages_{earlier}"]
        users = users.select("arm", messages=so_far, active=(so_far > 0).cast("int64"))
        by_arm = sums_by(users, ["arm"], [("active", "active"), ("messages", "messages")])
        arms = {arm: by_arm[(arm,)] for arm in checks.ARMS if (arm,) in by_arm}
        exposures, messages = checks.of_both(found, day)
        row: dict[str, Any] = {
            "day": day,
            "users": {arm: arms[arm].n if arm in arms else 0 for arm in checks.ARMS},
            "exposures": exposures,
            "messages": messages,
        }
        if len(arms) == 2 and min(sums.n for sums in arms.values()) > 1:
            for name in ("breadth", "depth"):
                row[name] = lift_percent(compare(METRICS[name], arms, "raw", plan.rule.alpha))
        rows.append(row)
    return list(finite(rows))


def _segments(found: Population, names: tuple[str, ...]) -> dict[str, dict[str, dict[str, Sums]]]:
    wanted = [(column, column) for column in ("active", "messages", "active_days")]
    made: dict[str, dict[str, dict[str, Sums]]] = {}
    for name in ("cohort", *names):
        for (value, arm), sums in sums_by(found.users, [name, "arm"], wanted).items():
            if arm in checks.ARMS:
                made.setdefault(name, {}).setdefault(value, {})[arm] = sums
    return made


def _nothing(plan: Plan) -> dict[str, Any]:
    return checks.facts({}, plan) | {
        "metrics": {},
        "by_day": [],
        "segments": [],
        "guardrails": {},
        "logs": {},
    }


def analyse_population(
    plan: Plan, found: Population | None, *, simulated: bool, segments: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Analyse a test that is over.

    Args:
        plan: of the test; its rule decides.
        found: the users; None if there are none.
        simulated: whether the users are the demo's.
        segments: columns of the users beside ``cohort``.

    Returns:
        a document: ``result`` (valid, invalid), ``reasons``, ``advice`` (promote, inconclusive, reject; null if
        invalid) and ``advice_reasons``, ``rule``, ``users``, ``sample_ratio``, ``balance``, ``window``, ``logs``,
        ``metrics`` (see :func:`flywheel_tasks.online.metrics.figures`), ``primary_pvalues``, ``guardrails``,
        ``by_day``, ``segments``. A missing figure is null.
    """
    rule = plan.rule
    document: dict[str, Any] = {
        "experiment": plan.experiment,
        "generation": plan.generation,
        "model_digest": plan.model_digest,
        "simulated": simulated,
        "confidence": 1 - rule.alpha,
        "rule": rule.model_dump(mode="json"),
        "advice": None,
        "advice_reasons": [],
        "primary_pvalues": {},
        **_nothing(plan),
    }
    if found is None:
        return document | {"result": "invalid", "reasons": ["nobody was exposed"]}
    arms = arm_sums(found)
    document |= checks.facts(arms, plan)
    document["window"] = {
        "start": found.window.start.isoformat(),
        "end": found.window.end.isoformat(),
        "days": found.window.days,
    }
    document["logs"] = dict(found.description)
    reasons = checks.exposure_faults(found, plan)
    reasons += checks.size_faults(
        document["users"], rule.min_users_per_arm, document["sample_ratio"]["pvalue"]
    )
    reasons += checks.balance_faults(document["balance"])
    if not simulated:  # the simulation writes all days in which its users do something
        reasons += checks.day_faults(found, plan)
    if min(document["users"].values()) > 1:
        reasons += checks.guardrail_faults(arms, rule)
        metrics = {name: figures(metric, arms, rule) for name, metric in METRICS.items()}
        reasons += [
            f"{name} has no lift with an interval"
            for name in rule.primary
            if None in decisive(metrics[name], rule.estimate)["lift_percent"].values()
        ]
        guardrails, harm = harms(arms, rule)
        document |= {"metrics": metrics, "guardrails": guardrails, "by_day": _by_day(found, plan)}
        document["segments"] = segment_lifts(_segments(found, segments), rule)
        if not reasons:
            advice, why, pvalues = advise(metrics, arms, harm, rule)
            document |= {"advice": advice, "advice_reasons": why, "primary_pvalues": pvalues}
    return document | {"result": "invalid" if reasons else "valid", "reasons": reasons}


def as_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as the registry keeps it; equal documents give equal bytes."""
    return orjson.dumps(
        document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )


def running_experiment(root: Path, generation: str) -> Experiment:
    """The running test of a generation.

    Raises:
        RegistryError: there is none.
    """
    experiment = registry_of(root).state().running(generation)
    if experiment is None:
        raise RegistryError(f"no experiment of generation {generation} is running")
    return experiment


def analyse(root: Path, generation: str, by: str, now: datetime | None = None) -> dict[str, Any]:
    """Analyse the running test of a generation, keep the result and record it.

    Args:
        root: the workspace.
        generation: whose test.
        by: who analyses it.
        now: by default now. Before the test's end the result is invalid: a fixed-horizon figure that is looked at early
            promises what it does not keep.

    Returns:
        the document of :func:`analyse_population`, also in ``launch/analysis.json`` and kept by the registry.

    Raises:
        RegistryError: no test of this generation is running.
        LogsError: the logs cannot be read.
    """
    settings = load_settings(root / "params.yaml")
    experiment = running_experiment(root, generation)
    segments = settings.ab.segments
    with look_at(root, settings, experiment, now or datetime.now(UTC), segments) as look:
        document = analyse_population(
            experiment.plan,
            look.population,
            simulated=of_simulated_users(settings),
            segments=segments,
        )
    if not look.over:
        early = (
            f"the test runs until {look.ends_at:%Y-%m-%d %H:%M} UTC: only its sequential view may be read now"
        )
        document |= {"result": "invalid", "advice": None, "reasons": [early, *document["reasons"]]}
    data = as_bytes(document)
    digest = bytes_digest(data)
    registry = registry_of(root)
    registry.put_generation(generation, analysis_name(digest), data)
    with atomic_path(root / ANALYSIS) as temporary:
        temporary.write_bytes(data)
    found = Analysis(
        result=document["result"],
        digest=digest,
        reasons=tuple(document["reasons"]),
        advice=document["advice"],
    )
    if experiment.analysis != found:
        registry.record_analysis(generation, found, by=by)
    return document
