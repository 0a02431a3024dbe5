"""Gate rules: a metric against its limits, in words; pass, warn or block. What is not measured blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flywheel_tasks.evaluation.gate_rules import GateRules, Limit, Overfitting, Rule
from flywheel_tasks.evaluation.measured import Measured, find, number

Outcome = Literal["pass", "warn", "block"]
SEVERITY: dict[Outcome, int] = {"block": 0, "warn": 1, "pass": 2}

USER = "evaluate.win_rate.pointwise.user"
INTERNAL = "evaluate.win_rate.pointwise.internal"
DIVERGENCE = "evaluate.divergence.pointwise"


@dataclass(frozen=True)
class Reason:
    """One rule, applied.

    Attributes:
        metric: ``<stage>.<path in its metrics file>``.
        outcome: pass, warn or block.
        value: what was measured; None where nothing usable was.
        low: of its 95% interval, or None.
        high: of its 95% interval, or None.
        block: the limits whose breach blocks, or None.
        warn: the limits whose breach warns, or None.
        reason: one sentence with the value, its interval if it has one, and the limit.
    """

    metric: str
    outcome: Outcome
    value: float | None
    low: float | None
    high: float | None
    block: dict[str, float | None] | None
    warn: dict[str, float | None] | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """As in ``gate/verdict.json``."""
        return asdict(self)


def _reason(
    metric: str,
    found: Measured,
    outcome: Outcome,
    text: str,
    block: Limit | None = None,
    warn: Limit | None = None,
) -> Reason:
    low, high = found.bounds or (None, None)
    return Reason(
        metric,
        outcome,
        found.value,
        low,
        high,
        block.model_dump() if block else None,
        warn.model_dump() if warn else None,
        text,
    )


def not_measured(
    metric: str, found: Measured, block: Limit | None = None, warn: Limit | None = None
) -> Reason:
    """The block that a metric without a usable number gets (fail closed)."""
    text = f"{metric} {found.problem}; what is not measured does not pass."
    return _reason(metric, found, "block", text, block, warn)


def apply(rule: Rule, metrics: Mapping[str, Any]) -> Reason:
    """Compare one metric's point estimate with a rule's limits (all inclusive).

    Args:
        rule: the rule.
        metrics: of all stages, by stage.
    """
    found = find(metrics, rule.metric)
    if found.value is None and found.absent and rule.may_be_absent:
        return _reason(rule.metric, found, "pass", f"{rule.metric} {found.problem}.", rule.block, rule.warn)
    if found.value is None:
        return not_measured(rule.metric, found, rule.block, rule.warn)
    outcome: Outcome = "pass"
    if rule.block is not None and not rule.block.holds(found.value):
        outcome, verdict = "block", f"{_breach(rule.block, found.value)}: blocked"
    elif rule.warn is not None and not rule.warn.holds(found.value):
        outcome, verdict = "warn", f"{_breach(rule.warn, found.value)}: look before you launch"
    else:
        verdict = "as required, " + _bounds(rule.block or rule.warn)
    limits = [x for limit in (rule.block, rule.warn) if limit for x in (limit.min, limit.max)]
    text = f"{rule.metric} is {number(found.value, *limits)}{found.interval()}, {verdict}."
    return _reason(rule.metric, found, outcome, text, rule.block, rule.warn)


def _breach(limit: Limit, value: float) -> str:
    if limit.min is not None and value < limit.min:
        return f"below the minimum of {limit.min:g}"
    return f"above the maximum of {limit.max:g}"


def _bounds(limit: Limit | None) -> str:
    named = {"at least": limit.min, "at most": limit.max} if limit else {}
    return " and ".join(f"{word} {value:g}" for word, value in named.items() if value is not None)


def overfitting(rule: Overfitting, metrics: Mapping[str, Any]) -> list[Reason]:
    """The paper's overfitting rule: win rates too high, internal too low, or far apart (V12: 70.7, 43.7%).

    Args:
        rule: its limits.
        metrics: of all stages, by stage.
    """
    user, gap = find(metrics, USER), find(metrics, DIVERGENCE)
    # A high internal win rate only warns: the prompts that a model overfits to are those of its training, users' ones.
    bounds = Rule(metric=INTERNAL, block=Limit(min=rule.internal_low), warn=Limit(max=rule.high))
    return [_not_too_high(USER, user, rule), apply(bounds, metrics), _together(gap, rule)]


def _not_too_high(metric: str, found: Measured, rule: Overfitting) -> Reason:
    block, warn = Limit(max=rule.high), Limit(max=rule.target)
    if found.value is None:
        return not_measured(metric, found, block, warn)
    outcome: Outcome = "pass"
    if found.value >= rule.high:
        outcome, verdict = "block", f"not below {rule.high:g}: a sign of overfitting"
    elif found.value > rule.target:
        outcome, verdict = "warn", f"above the target of {rule.target:g}: a large step for one generation"
    else:
        verdict = f"below {rule.high:g} as required"
    text = f"{metric} is {number(found.value, rule.high, rule.target)}{found.interval()}, {verdict}."
    return _reason(metric, found, outcome, text, block, warn)


def _together(gap: Measured, rule: Overfitting) -> Reason:
    """A gap beyond ``rule.gap`` blocks where its interval leaves out 0, or where it has no interval."""
    block, warn = Limit(min=-rule.gap, max=rule.gap), Limit(min=-rule.wide_gap, max=rule.wide_gap)
    if gap.value is None:
        return not_measured(DIVERGENCE, gap, block, warn)
    noise = gap.bounds is not None and gap.bounds[0] <= 0 <= gap.bounds[1]
    outcome: Outcome = "pass"
    if abs(gap.value) <= rule.gap:
        verdict = f"within ±{rule.gap:g} as required"
    elif not noise:
        outcome, verdict = "block", f"outside ±{rule.gap:g} and no noise: the sources disagree"
    elif abs(gap.value) > rule.wide_gap:
        outcome = "warn"
        verdict = f"outside ±{rule.wide_gap:g}, but so few prompts cannot tell it from no gap at all"
    else:
        verdict = f"outside ±{rule.gap:g}, but so few prompts cannot tell it from no gap at all"
    value = number(gap.value, rule.gap, -rule.gap, rule.wide_gap, -rule.wide_gap)
    text = f"{DIVERGENCE} (user minus internal) is {value}{gap.interval()}, {verdict}."
    return _reason(DIVERGENCE, gap, outcome, text, block, warn)


def judge(rules: GateRules, metrics: Mapping[str, Any]) -> Sequence[Reason]:
    """Apply every rule: blocks first, then warnings, else in the order of the file.

    Args:
        rules: the limits.
        metrics: of all stages, by stage.
    """
    reasons = [apply(rule, metrics) for rule in rules.rules] + overfitting(rules.overfitting, metrics)
    return ordered(reasons + _suites(rules, metrics))


def _suites(rules: GateRules, metrics: Mapping[str, Any]) -> list[Reason]:
    """The suites that were run; one without a limit of its own must be right on every prompt."""
    run = (metrics.get("evaluate") or {}).get("suites") or {}
    reasons = []
    for name in run:
        limits = rules.suites.get(name, Limit(min=1.0))
        parts = {"": limits} if isinstance(limits, Limit) else {f".{key}": limits[key] for key in limits}
        for part, limit in parts.items():
            reasons.append(apply(Rule(metric=f"evaluate.suites.{name}{part}", block=limit), metrics))
    return reasons


def ordered(reasons: Sequence[Reason]) -> list[Reason]:
    """Blocks first, then warnings, else in the given order."""
    return sorted(reasons, key=lambda reason: SEVERITY[reason.outcome])


def verdict_of(reasons: Sequence[Reason]) -> Outcome:
    """The worst outcome; without a reason nothing was judged, which blocks."""
    return min((reason.outcome for reason in reasons), key=lambda outcome: SEVERITY[outcome], default="block")
