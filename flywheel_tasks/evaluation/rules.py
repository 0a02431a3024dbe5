"""Gate rules: a metric against its limits, in words. What is missing or not a number fails."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flywheel_tasks.settings import Gate, GateRule, Overfitting

USER = "evaluate.win_rate.pointwise.user"
INTERNAL = "evaluate.win_rate.pointwise.internal"
DIVERGENCE = "evaluate.divergence.pointwise"


@dataclass(frozen=True)
class Reason:
    """One rule, applied.

    Attributes:
        metric: ``<stage>.<path in its metrics file>``.
        value: what was measured; None where nothing usable was.
        min: lower limit, or None.
        max: upper limit, or None.
        passed: whether the rule holds.
        reason: one sentence with the value, its interval if it has one, and the limit.
    """

    metric: str
    value: float | None
    min: float | None
    max: float | None
    passed: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """As in ``gate/verdict.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """A metric as found: its number, its interval in words (maybe empty) and bounds, or what is wrong with it."""

    value: float | None
    interval: str
    problem: str
    bounds: tuple[float, float] | None = None


def find(metrics: Mapping[str, Any], metric: str) -> Measured:
    """Look a metric up.

    Args:
        metrics: of all stages, by stage.
        metric: ``<stage>.<path>``; the end of the path is a number, or an estimate with ``value``.
    """
    node: Any = metrics
    parent: Any = None
    for key in metric.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return Measured(None, "", "is missing")
        parent, node = node, node[key]
    if isinstance(node, Mapping):
        if "value" not in node:
            return Measured(None, "", "is a group of metrics, not a number")
        parent, node = node, node["value"]
    if node is None:
        return Measured(None, "", "is null: nothing was measured")
    if isinstance(node, bool) or not isinstance(node, int | float):
        return Measured(None, "", f"is not a number but {type(node).__name__}")
    if not math.isfinite(node):
        return Measured(None, "", f"is {node}, not a finite number")
    bounds = _bounds(parent, node)
    return Measured(float(node), _interval(parent, bounds), "", bounds)


def _bounds(parent: Any, value: Any) -> tuple[float, float] | None:
    if not isinstance(parent, Mapping) or parent.get("value") != value:
        return None
    low, high = parent.get("low"), parent.get("high")
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return None
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _interval(parent: Any, bounds: tuple[float, float] | None) -> str:
    parts = []
    if bounds is not None:
        parts.append(f"95% interval {bounds[0]:.3g} to {bounds[1]:.3g}")
    if bounds is not None and isinstance(parent.get("n"), int):
        parts.append(f"n = {parent['n']}")
    return f" ({', '.join(parts)})" if parts else ""


def number(value: float, *limits: float | None) -> str:
    """A number in four digits, or in all where rounding would show it equal to a limit that it is not."""
    short = f"{value:.4g}"
    if any(limit is not None and float(short) == limit != value for limit in limits):
        return repr(value)
    return short


def apply(rule: GateRule, metrics: Mapping[str, Any]) -> Reason:
    """Compare one metric's point estimate with a rule's limits (both inclusive).

    Args:
        rule: the rule.
        metrics: of all stages, by stage.
    """
    found = find(metrics, rule.metric)
    if found.value is None:
        return _failed(rule.metric, found, rule.min, rule.max)
    low = rule.min is not None and found.value < rule.min
    high = rule.max is not None and found.value > rule.max
    if low:
        verdict = f"below the minimum of {rule.min:g}"
    elif high:
        verdict = f"above the maximum of {rule.max:g}"
    else:
        limits = {"at least": rule.min, "at most": rule.max}
        verdict = "as required, " + " and ".join(f"{k} {v:g}" for k, v in limits.items() if v is not None)
    text = f"{rule.metric} is {number(found.value, rule.min, rule.max)}{found.interval}, {verdict}."
    return Reason(rule.metric, found.value, rule.min, rule.max, not (low or high), text)


def _failed(metric: str, found: Measured, low: float | None, high: float | None) -> Reason:
    return Reason(
        metric, None, low, high, False, f"{metric} {found.problem}; what is not measured does not pass."
    )


def overfitting(rule: Overfitting, metrics: Mapping[str, Any]) -> list[Reason]:
    """The paper's overfitting rule: win rates too high, high for users only, or far apart (V12: 70.7, 43.7%).

    Args:
        rule: its limits.
        metrics: of all stages, by stage.
    """
    user, internal, gap = (find(metrics, name) for name in (USER, INTERNAL, DIVERGENCE))
    return [
        _stays_below(USER, user, rule.below),
        _stays_below(INTERNAL, internal, rule.below),
        _user_only(user, internal, rule),
        _apart(gap, rule.max_divergence),
    ]


def _stays_below(metric: str, found: Measured, limit: float) -> Reason:
    if found.value is None:
        return _failed(metric, found, None, limit)
    passed = found.value < limit
    verdict = f"below {limit:g} as required" if passed else f"not below {limit:g}: a sign of overfitting"
    text = f"{metric} is {number(found.value, limit)}{found.interval}, {verdict}."
    return Reason(metric, found.value, None, limit, passed, text)


def _user_only(user: Measured, internal: Measured, rule: Overfitting) -> Reason:
    for metric, found in ((USER, user), (INTERNAL, internal)):
        if found.value is None:
            return _failed(metric, found, None, None)
    assert user.value is not None
    assert internal.value is not None
    bad = user.value >= rule.user_high and internal.value < rule.internal_low
    verdict = "better for users only, a sign of overfitting" if bad else "not better for users only"
    text = (
        f"{INTERNAL} is {number(internal.value, rule.internal_low)}{internal.interval} with a user win rate "
        f"of {number(user.value, rule.user_high)}, {verdict} (blocked: internal below "
        f"{rule.internal_low:g} with user at {rule.user_high:g} or more)."
    )
    return Reason(INTERNAL, internal.value, rule.internal_low if bad else None, None, not bad, text)


def _apart(gap: Measured, limit: float) -> Reason:
    if gap.value is None:
        return _failed(DIVERGENCE, gap, -limit, limit)
    near = abs(gap.value) <= limit
    noise = gap.bounds is not None and gap.bounds[0] <= 0 <= gap.bounds[1]
    passed = near or noise
    if near:
        verdict = f"within ±{limit:g} as required"
    elif noise:
        verdict = f"outside ±{limit:g}, but so few prompts cannot tell it from no gap at all"
    else:
        verdict = f"outside ±{limit:g}: the sources disagree"
    text = (
        f"{DIVERGENCE} (user minus internal) is {number(gap.value, limit, -limit)}{gap.interval}, {verdict}."
    )
    return Reason(DIVERGENCE, gap.value, -limit, limit, passed, text)


def judge(gate: Gate, metrics: Mapping[str, Any]) -> Sequence[Reason]:
    """Apply every rule, failures first, else in the settings' order.

    Args:
        gate: the rules.
        metrics: of all stages, by stage.
    """
    reasons = [apply(rule, metrics) for rule in gate.rules] + overfitting(gate.overfitting, metrics)
    return sorted(reasons, key=lambda reason: reason.passed)
