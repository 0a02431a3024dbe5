"""The size of an A/B test from past logs, and the rule that will decide it."""

import math
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np

from flywheel_tasks.online.event_source import of_simulated_users, rule_of
from flywheel_tasks.online.exposed import Population, Window, population
from flywheel_tasks.online.log_events import Events, open_events
from flywheel_tasks.online.metrics import METRICS, Estimate, Metric, absent, pairs
from flywheel_tasks.online.sums import Sums, sums_by
from flywheel_tasks.pipeline.params_file import write_setting
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.documents import finite, write_json
from flywheel_tasks.storage.registry_state import Rule
from flywheel_tasks.traffic.warehouse import EPOCH, newest_day

DESIGN = "launch/design.json"


class DesignError(ValueError):
    """Past logs say nothing of the size of a test; the message says why."""


def users_needed(
    metric: Metric, past: Sums, estimate: Estimate, *, lift_percent: float, alpha: float, power: float
) -> int | None:
    """Users of both arms together that find a lift, by tea-tasting's power analysis.

    That takes both arms to vary alike. Counts do not: who writes a fifth more also varies more. So the result is
    stretched by how much more the two arms vary together than two like the past (:func:`_stretch`).

    Args:
        metric: the metric.
        past: sums over users as they were.
        estimate: raw, or with CUPED.
        lift_percent: the relative lift, not zero.
        alpha: two-sided level.
        power: chance to find it.

    Returns:
        None where past users do not vary.
    """
    # The normal distribution: SciPy's noncentral t is NaN for some sizes, and tests have hundreds of users.
    options = {"alpha": alpha, "power": power, "rel_effect_size": lift_percent / 100}
    test = metric.of(estimate, use_t=False, **options)
    mean, grown = past.total(metric.numer) / past.n, 1 + lift_percent / 100
    is_share = metric.numer == "active" and metric.denom is None
    if is_share and not 0 < mean * grown < 1:  # no share can grow so much
        return None
    try:
        with np.errstate(invalid="ignore"):  # users who do not vary at all
            alike = test.solve_power_from_aggregates(past.aggregates(), "n_obs")[0].n_obs
            return math.ceil(alike * _stretch(metric, past, estimate, grown))
    except (ValueError, ArithmeticError, RuntimeError):  # no mean or no variance: nothing to solve
        return None


def _stretch(metric: Metric, past: Sums, estimate: Estimate, grown: float) -> float:
    """Variance of the candidate and the control arm together, over twice that of the past.

    Every user's rate is taken to grow by the lift. Then a share p varies as p(1 - p); a count of messages, Poisson
    given the rate, with variance v and mean m, by ``grown^2 (v - m) + grown m``; anything else by ``grown^2 v``. CUPED
    takes off ``(1 + grown)^2 / 2`` times ``cov^2 / var`` of the covariate, since both arms share one coefficient.

    Args:
        metric: the metric.
        past: sums over users as they were.
        estimate: raw, or with CUPED.
        grown: one and the lift.
    """
    if metric.denom is not None:
        return (1 + grown**2) / 2
    aggregates = past.aggregates()
    mean, variance = aggregates.mean(metric.numer), aggregates.var(metric.numer)
    candidate = grown**2 * variance
    if metric.numer == "active":
        candidate = variance * grown * (1 - mean * grown) / (1 - mean)
    elif metric.numer == "messages" and variance > mean:
        candidate = grown**2 * (variance - mean) + grown * mean
    known = 0.0
    if estimate == "cuped" and metric.covariate is not None:
        covariate = metric.covariate[0]
        known = aggregates.cov(metric.numer, covariate) ** 2 / aggregates.var(covariate)
    return float((variance + candidate - (1 + grown) ** 2 / 2 * known) / (2 * (variance - known)))


def _end(acts: ir.Table, today: date | None) -> tuple[datetime, int]:
    """The end of the newest day that is over, as a generation takes it, and how many events are later.

    Args:
        acts: what was done.
        today: in UTC. It is not over, and a part of it would make users and days depend on the hour: it counts only
            where there is no other day, and those after tomorrow never do. None: for logs whose days are of any time.

    Raises:
        DesignError: nothing was done.
    """
    timed = acts.filter(acts.time.notnull())
    number = timed.time.truncate("s").epoch_seconds().cast("int64") // 86_400
    rows = timed.group_by(day=number).aggregate(n=timed.count()).to_pyarrow().to_pylist()
    counts = {row["day"]: row["n"] for row in rows}
    # Tomorrow has begun where clocks are ahead of UTC.
    last = math.inf if today is None else (today - EPOCH).days + 1
    newest = newest_day({day: n for day, n in counts.items() if day <= last}, today)
    if newest is None:
        raise DesignError("the logs hold no messages of users who would be in a test")
    end = datetime.combine(EPOCH + timedelta(days=newest + 1), time(), UTC)
    return end, sum(n for day, n in counts.items() if day > newest)


def _past(events: Events, rule: Rule, today: date | None) -> tuple[Population, list[int], int]:
    """The users who wrote in the newest days of the logs, each as if exposed by their first message there.

    As in a test: who does not write meets no arm, and what led to the first reply of the arm is no outcome.

    Args:
        events: of everyone.
        rule: that will decide.
        today: as in :func:`_end`.

    Returns:
        the users, how many of them had written by the end of each day, and how many later events there are.
    """
    acts = events.activity
    if "source" in acts.columns:
        acts = acts.filter(acts.source.isin(rule.include_sources))
    end, later = _end(acts, today)
    acts = acts.filter(acts.time < ibis.timestamp(end.replace(tzinfo=None)))
    window = Window(end - timedelta(days=max(1, math.ceil(rule.duration_minutes / 1440))), end)
    start = ibis.timestamp(window.start.replace(tzinfo=None))
    wrote = acts.filter((acts.kind == "message") & (acts.time >= start))
    firsts = wrote.group_by("user").aggregate(time=wrote.time.min())
    exposures = firsts.mutate(arm=ibis.literal("control"), source=ibis.literal(rule.include_sources[0]))
    made = population(replace(events, exposures=exposures, activity=acts), window, rule)
    dates = firsts.group_by(date=firsts.time.date()).aggregate(n=firsts.count()).to_pyarrow().to_pylist()
    count = {row["date"]: row["n"] for row in dates}
    days, total = [], 0
    for day in range(window.days):
        total += count.get((window.start + timedelta(days=day)).date(), 0)
        days.append(total)
    return made, days, later


def days_needed(users: int | None, by_day: list[int], share: float) -> int | None:
    """Days until the arms have that many users; beyond the past days at their mean rate.

    Args:
        users: of both arms.
        by_day: different users who had written by the end of each past day.
        share: of all users in both arms.
    """
    if users is None or not by_day[-1]:
        return None
    for day, seen in enumerate(by_day, start=1):
        if seen * share >= users:
            return day
    return math.ceil(users / (share * by_day[-1] / len(by_day)))


def _row(
    metric: Metric, past: Sums, by_day: list[int], share: float, options: dict[str, float]
) -> dict[str, Any]:
    aggregates = past.aggregates()
    mean = aggregates.mean(metric.numer) / aggregates.mean(metric.denom)
    row: dict[str, Any] = {"mean": float(mean), "cuped": None}
    users = users_needed(metric, past, "raw", **options)
    row |= {"users": users, "days": days_needed(users, by_day, share)}
    if metric.covariate is not None and past.total(metric.covariate[0]):
        users = users_needed(metric, past, "cuped", **options)
        row["cuped"] = {"users": users, "days": days_needed(users, by_day, share)}
    return row


def _planned(rows: dict[str, Any], rule: Rule) -> int:
    """Users for the primary metric that needs most, by the estimate that decides."""
    needs = []
    for name in rule.primary:
        row = rows.get(name)
        if row is not None:
            cuped = row["cuped"] if rule.estimate == "cuped" else None
            needs.append((cuped or row)["users"])
    known = [need for need in needs if need is not None]
    if not known:
        raise DesignError(f"past logs say nothing of {', '.join(rule.primary)}: no mean or no variance")
    return max(2 * rule.min_users_per_arm, *known)


def make_design(
    root: Path, *, lift_percent: float, power: float, now: datetime | None = None
) -> dict[str, Any]:
    """Users and days that a lift needs, from past logs, with the rule that will decide; into ``launch/design.json``.

    The primary metrics share ``rule.alpha`` equally here. Holm's correction, which decides, never needs more.

    Args:
        root: the workspace.
        lift_percent: smallest lift worth finding.
        power: chance to find it.
        now: by default now. Events of a day that is not over are left out where there are others, except of simulated
            users.

    Raises:
        DesignError: the lift is zero, or the logs say nothing.
        LogsError: the logs cannot be read.
        EventsError: the tables of ``ab.events`` cannot be read.
    """
    if not lift_percent:
        raise DesignError("the lift must not be zero")
    settings: Settings = load_settings(root / "params.yaml")
    rule, share = rule_of(settings), 2 * settings.launch.traffic_share
    simulated, moment = of_simulated_users(settings), now or datetime.now(UTC)
    today = None if simulated else moment.astimezone(UTC).date()
    with open_events(settings, root, None) as events:
        made, by_day, later = _past(events, rule, today)
        past = sums_by(made.users, ["arm"], pairs()).get(("control",))
    if past is None or past.n < 2:
        raise DesignError("the logs hold less than two users who would be in a test")
    options = {"lift_percent": lift_percent, "alpha": rule.alpha / len(rule.primary), "power": power}
    rows = {
        name: _row(metric, past, by_day, share, options)
        for name, metric in METRICS.items()
        if absent(metric, {"past": past}) is None
    }
    design = finite(
        {
            "lift_percent": lift_percent,
            "power": power,
            "alpha": options["alpha"],
            "rule": rule.model_dump(mode="json"),
            "simulated": simulated,
            "past": {
                "users": past.n,
                "days": made.window.days,
                "users_per_day": share * by_day[-1] / len(by_day),
                "start": made.window.start.isoformat(),
                "later_events": later,
                "logs": dict(made.description),
            },
            "metrics": rows,
            "planned_users": _planned(rows, rule),
            "at": moment.isoformat(timespec="seconds"),
        }
    )
    write_json(design, root / DESIGN)
    return dict(design)


def write_planned_users(root: Path, users: int) -> None:
    """Set ``ab.planned_users`` in params.yaml; nothing else there changes."""
    write_setting(root, "ab.planned_users", users)
