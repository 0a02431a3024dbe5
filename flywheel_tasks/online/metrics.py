"""The metrics of an A/B test and their lifts: raw and with CUPED, at a fixed end and always valid."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tea_tasting as tt
from scipy.stats import norm

from flywheel_tasks.online import sequential
from flywheel_tasks.online.exposed import COUNTED
from flywheel_tasks.online.sums import Sums
from flywheel_tasks.storage.documents import finite
from flywheel_tasks.storage.experiment_records import Rule

Estimate = Literal["raw", "cuped"]
_NARROW = 1e-6  # a confidence level at which no interval overflows
ESTIMATES: tuple[Estimate, Estimate] = ("raw", "cuped")


@dataclass(frozen=True)
class Metric:
    """A metric: the mean of a column over exposed users, or the ratio of the means of two.

    Attributes:
        name: as in the analysis.
        title: for people.
        numer: column of the users.
        denom: column of the users; None: per exposed user.
        better: the direction that is good for users.
        covariate: columns from before the test (numerator, denominator) for CUPED; None: there is none.
    """

    name: str
    title: str
    numer: str
    denom: str | None
    better: Literal["higher", "lower"]
    covariate: tuple[str, str | None] | None

    def of(self, estimate: Estimate, **options: Any) -> tt.RatioOfMeans:
        """The metric as tea-tasting has it: delta method for ratios, CUPED (Deng et al. 2013) with a covariate."""
        covariate = self.covariate if estimate == "cuped" and self.covariate else (None, None)
        return tt.RatioOfMeans(self.numer, self.denom, *covariate, **options)


def _per_reply(name: str, title: str, better: Literal["higher", "lower"]) -> Metric:
    return Metric(f"{name}_per_reply", title, name, "replies", better, (f"pre_{name}", "pre_replies"))


def _per_user(
    name: str, title: str, numer: str, covariate: str, denom: str | None = None, past: str | None = None
) -> Metric:
    return Metric(name, title, numer, denom, "higher", (covariate, past))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _per_user("breadth", "Breadth: exposed users who wrote", "active", "pre_active"),
        _per_user("active_days", "Breadth: active days per exposed user", "active_days", "pre_messages"),
        _per_user("depth", "Depth: messages per exposed user", "messages", "pre_messages"),
        _per_user(
            "messages_per_active_user",
            "Depth: messages per active user",
            "messages",
            "pre_messages",
            "active",
            "pre_active",
        ),
        _per_reply("thumb_up", "Thumbs up per reply", "higher"),
        _per_reply("love", "Love per reply", "higher"),
        _per_reply("thumb_down", "Thumbs down per reply", "lower"),
        _per_reply("regenerate", "Regenerated per reply", "lower"),
        _per_reply("report", "Reports per reply", "lower"),
        _per_reply("safety_violation", "Safety violations per reply", "lower"),
        _per_reply("fallback", "Fallbacks to the champion per reply", "lower"),
        Metric("latency_ms", "Latency of a reply (ms)", "milliseconds", "timed_replies", "lower", None),
    )
}
# Columns whose balance before the test is checked.
BALANCE = ("pre_active", "pre_messages")


def pairs(metrics: Iterable[Metric] = METRICS.values()) -> set[tuple[str, str]]:
    """The products of columns that the metrics need, those of the balance check included."""
    found = {(name, name) for name in BALANCE}
    for metric in metrics:
        columns = metric.of("cuped").aggr_cols
        found |= {(name, name) for name in columns.mean_cols} | set(columns.cov_cols)
    return found


def absent(metric: Metric, arms: Mapping[str, Sums]) -> str | None:
    """Why a metric cannot be told, or None: nobody in either arm did what it counts, or the logs lack it."""
    columns = [*([metric.denom] if metric.denom else []), metric.numer]
    for column in columns:
        if not any(sums.total(column) for sums in arms.values()):
            known = metric.numer in COUNTED
            return (
                f"no {column} in the logs"
                if known or column == metric.denom
                else f"{column} is zero for everyone"
            )
    return None


def has_past(metric: Metric, arms: Mapping[str, Sums]) -> bool:
    """Whether CUPED can be had: somebody did before what the metric counts, and no arm's past is a ratio to nothing.

    Args:
        metric: the metric.
        arms: sums of both arms.
    """
    if metric.covariate is None:
        return False
    numer, denom = metric.covariate
    return any(sums.total(numer) for sums in arms.values()) and (
        denom is None or all(sums.total(denom) for sums in arms.values())
    )


def compare(
    metric: Metric, arms: Mapping[str, Sums], estimate: Estimate, alpha: float, *, use_t: bool = True
) -> Any:
    """tea-tasting's comparison of candidate with control (a ``MeanResult``); a figure that does not exist is NaN.

    Args:
        metric: the metric.
        arms: sums of ``control`` and ``candidate``.
        estimate: raw, or with CUPED.
        alpha: of the interval.
        use_t: Student's t, or the normal distribution.
    """
    test = metric.of(estimate, confidence_level=1 - alpha, use_t=use_t)
    columns = test.aggr_cols.mean_cols
    both = [arms[arm].aggregates(columns) for arm in ("control", "candidate")]
    with np.errstate(divide="ignore", invalid="ignore"):
        try:
            return test.analyze_aggregates(*both)
        except (
            OverflowError
        ):  # a mean so near to zero that its ratio has no bound: all else is as at any level
            narrow = metric.of(estimate, confidence_level=_NARROW, use_t=use_t).analyze_aggregates(*both)
            return narrow._replace(
                effect_size_ci_lower=-math.inf,
                effect_size_ci_upper=math.inf,
                rel_effect_size_ci_lower=-1.0,
                rel_effect_size_ci_upper=math.inf,
            )


def lift_percent(result: Any) -> dict[str, float]:
    """The relative effect of a comparison and its interval, in percent."""
    return {
        "value": 100 * float(result.rel_effect_size),
        "low": 100 * float(result.rel_effect_size_ci_lower),
        "high": 100 * float(result.rel_effect_size_ci_upper),
    }


def standard_errors(result: Any, alpha: float) -> tuple[float, float]:
    """The standard errors that a comparison with the normal distribution implies.

    Args:
        result: of :func:`compare` with ``use_t=False``.
        alpha: of its interval.

    Returns:
        of the difference in z (estimate over standard error), and of the logarithm of the ratio of means.
    """
    ratio, high = 1 + float(result.rel_effect_size), 1 + float(result.rel_effect_size_ci_upper)
    spread = math.log(high / ratio) / norm.ppf(1 - alpha / 2) if ratio > 0 and high > 0 else math.nan
    return float(result.statistic), spread


def always_valid(
    metric: Metric, arms: Mapping[str, Sums], estimate: Estimate, planned: int, alpha: float
) -> dict[str, Any]:
    """The sequential view: lift in percent with an interval, and p-value, that hold at every look.

    Args:
        metric: the metric.
        arms: sums of ``control`` and ``candidate``.
        estimate: raw, or with CUPED.
        planned: users at which the bound is tightest.
        alpha: over all looks.

    Returns:
        ``value``, ``low``, ``high`` (percent), ``pvalue``, ``z``.
    """
    result = compare(metric, arms, estimate, alpha, use_t=False)
    z, spread = standard_errors(result, alpha)
    n = sum(sums.n for sums in arms.values())
    with np.errstate(over="ignore"):  # of a mean next to zero the ratio has no bound: infinity
        factor = float(np.exp(spread * sequential.bound(n, planned, alpha)))
    ratio = 1 + float(result.rel_effect_size)
    pvalue = sequential.pvalue(z, n, planned, alpha) if math.isfinite(z) else math.nan
    return {
        "value": 100 * (ratio - 1),
        "low": 100 * (ratio / factor - 1),
        "high": 100 * (ratio * factor - 1),
        "pvalue": pvalue,
        "z": z,
    }


def one_arm(metric: Metric, sums: Sums) -> tuple[float, float]:
    """A metric in one arm, and its standard error: users are what was drawn, so a ratio's is by the delta method.

    Args:
        metric: the metric, raw.
        sums: of the arm, of two users or more.

    Returns:
        both NaN where there is nothing to divide by.
    """
    users = sums.aggregates(metric.of("raw").aggr_cols.mean_cols).with_zero_div()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = users.mean(metric.numer) / users.mean(metric.denom)
        return float(value), math.sqrt(users.ratio_var(metric.numer, metric.denom) / sums.n)


def _one(metric: Metric, arms: Mapping[str, Sums], estimate: Estimate, rule: Rule) -> dict[str, Any]:
    result = compare(metric, arms, estimate, rule.alpha)
    n = sum(sums.n for sums in arms.values())
    sequential_view = always_valid(metric, arms, estimate, rule.planned_users, rule.alpha)
    return {
        "control": float(result.control),
        "candidate": float(result.treatment),
        "lift_percent": {**lift_percent(result), "n": n},
        "pvalue": float(result.pvalue),
        "sequential": sequential_view,
    }


def figures(metric: Metric, arms: Mapping[str, Sums], rule: Rule) -> dict[str, Any]:
    """All figures of a metric.

    Args:
        metric: the metric.
        arms: sums of ``control`` and ``candidate``.
        rule: of the plan.

    Returns:
        ``better``; the raw figures (``control``, ``candidate``, ``lift_percent``, ``pvalue``, ``sequential``); under
        ``cuped`` the same with CUPED, or null; ``absent``: why there are none, or null.
    """
    why = absent(metric, arms)
    raw = _one(metric, arms, "raw", rule)
    cuped = None
    if has_past(metric, arms):
        cuped = _one(metric, arms, "cuped", rule)
    return finite({"better": metric.better, "absent": why, **raw, "cuped": cuped})


def decisive(found: Mapping[str, Any], estimate: Estimate) -> Mapping[str, Any]:
    """The figures that decide: those with CUPED if the rule says so and there are any, else the raw ones."""
    return found["cuped"] if estimate == "cuped" and found["cuped"] is not None else found
