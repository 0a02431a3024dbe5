"""Gate rules: a metric against its limits, in words; pass, warn or block. What is not measured blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flywheel_tasks.evaluation.gate_rules import GateRules, Limit, Overfitting, Rule, Shown, SuiteLimit
from flywheel_tasks.evaluation.measured import Measured, Unit, find, limit, number

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


def _sentence(shown: Shown, found: Measured, verdict: str, *limits: float | None) -> str:
    assert found.value is not None
    value = number(found.value, *limits, unit=shown.unit)
    return f"{shown.title} is {value}{found.interval(shown.unit)}, {verdict}."


def not_measured(
    metric: str, shown: Shown, found: Measured, block: Limit | None = None, warn: Limit | None = None
) -> Reason:
    """The block that a metric without a usable number gets (fail closed)."""
    named = shown.title if shown.title == metric else f"{shown.title} ({metric})"
    text = f"{named} {found.problem}; what is not measured does not pass."
    return _reason(metric, found, "block", text, block, warn)


def apply(rule: Rule, metrics: Mapping[str, Any], shown: Shown | None = None) -> Reason:
    """Compare one metric's point estimate with a rule's limits (all inclusive).

    Args:
        rule: the rule.
        metrics: of all stages, by stage.
        shown: how the metric is told; by default by its name.
    """
    shown = shown or Shown(title=rule.metric)
    found = find(metrics, rule.metric)
    if found.value is None and found.absent and rule.may_be_absent:
        return _reason(rule.metric, found, "pass", f"{shown.title} {found.problem}.", rule.block, rule.warn)
    if found.value is None:
        return not_measured(rule.metric, shown, found, rule.block, rule.warn)
    outcome: Outcome = "pass"
    if rule.block is not None and not rule.block.holds(found.value):
        outcome, verdict = "block", f"{_breach(rule.block, found.value, shown.unit)}: blocked"
    elif rule.warn is not None and not rule.warn.holds(found.value):
        outcome, verdict = "warn", f"{_breach(rule.warn, found.value, shown.unit)}: look before you launch"
    else:
        verdict = "as required, " + _bounds(rule.block or rule.warn, shown.unit)
    limits = [x for bounds in (rule.block, rule.warn) if bounds for x in (bounds.min, bounds.max)]
    text = _sentence(shown, found, verdict, *limits)
    return _reason(rule.metric, found, outcome, text, rule.block, rule.warn)


def _breach(bounds: Limit, value: float, unit: Unit) -> str:
    if bounds.min is not None and value < bounds.min:
        return f"below the minimum of {limit(bounds.min, unit)}"
    assert bounds.max is not None
    return f"above the maximum of {limit(bounds.max, unit)}"


def _bounds(bounds: Limit | None, unit: Unit) -> str:
    named = {"at least": bounds.min, "at most": bounds.max} if bounds else {}
    return " and ".join(f"{word} {limit(value, unit)}" for word, value in named.items() if value is not None)


def overfitting(rules: GateRules, metrics: Mapping[str, Any]) -> list[Reason]:
    """The paper's overfitting rule: win rates too high, internal too low, or far apart (V12: 70.7, 43.7%).

    Args:
        rules: the limits.
        metrics: of all stages, by stage.
    """
    rule = rules.overfitting
    # A high internal win rate only warns: the prompts that a model overfits to are those of its training, users' ones.
    bounds = Rule(metric=INTERNAL, block=Limit(min=rule.internal_low), warn=Limit(max=rule.high))
    return [
        _not_too_high(find(metrics, USER), rule, rules.told(USER)),
        apply(bounds, metrics, rules.told(INTERNAL)),
        _together(find(metrics, DIVERGENCE), rule, rules.told(DIVERGENCE)),
    ]


def _not_too_high(found: Measured, rule: Overfitting, shown: Shown) -> Reason:
    block, warn = Limit(max=rule.high), Limit(max=rule.target)
    if found.value is None:
        return not_measured(USER, shown, found, block, warn)
    high, target = limit(rule.high, shown.unit), limit(rule.target, shown.unit)
    outcome: Outcome = "pass"
    if found.value >= rule.high:
        outcome, verdict = "block", f"not below {high}: a sign of overfitting"
    elif found.value > rule.target:
        outcome, verdict = "warn", f"above the target of {target}: a large step for one generation"
    else:
        verdict = f"below {high} as required"
    text = _sentence(shown, found, verdict, rule.high, rule.target)
    return _reason(USER, found, outcome, text, block, warn)


def _together(gap: Measured, rule: Overfitting, shown: Shown) -> Reason:
    """A gap beyond ``rule.gap`` blocks where its interval leaves out 0, or where it has no interval."""
    block, warn = Limit(min=-rule.gap, max=rule.gap), Limit(min=-rule.wide_gap, max=rule.wide_gap)
    if gap.value is None:
        return not_measured(DIVERGENCE, shown, gap, block, warn)
    small, wide = limit(rule.gap, shown.unit), limit(rule.wide_gap, shown.unit)
    noise = gap.bounds is not None and gap.bounds[0] <= 0 <= gap.bounds[1]
    outcome: Outcome = "pass"
    if abs(gap.value) <= rule.gap:
        verdict = f"within ±{small} as required"
    elif not noise:
        outcome, verdict = "block", f"outside ±{small} and no noise: the sources disagree"
    elif abs(gap.value) > rule.wide_gap:
        outcome = "warn"
        verdict = f"outside ±{wide}, but so few prompts cannot tell it from no gap at all"
    else:
        verdict = f"outside ±{small}, but so few prompts cannot tell it from no gap at all"
    text = _sentence(shown, gap, verdict, rule.gap, -rule.gap, rule.wide_gap, -rule.wide_gap)
    return _reason(DIVERGENCE, gap, outcome, text, block, warn)


def judge(rules: GateRules, metrics: Mapping[str, Any]) -> Sequence[Reason]:
    """Apply every rule: blocks first, then warnings, else in the order of the file.

    Args:
        rules: the limits.
        metrics: of all stages, by stage.
    """
    reasons = [apply(rule, metrics, rules.told(rule.metric)) for rule in rules.rules]
    return ordered([*reasons, *overfitting(rules, metrics), *_suites(rules, metrics)])


def _suites(rules: GateRules, metrics: Mapping[str, Any]) -> list[Reason]:
    """The suites that were run; one without a limit of its own must be right on every prompt.

    One that the rules want, and that was not run, is a reason too.
    """
    run = (metrics.get("evaluate") or {}).get("suites") or {}
    reasons = []
    for name in run:
        limits = rules.suites.get(name, SuiteLimit(min=1.0))
        parts = {"": limits} if isinstance(limits, SuiteLimit) else {f".{key}": limits[key] for key in limits}
        for part, bounds in parts.items():
            metric = f"evaluate.suites.{name}{part}"
            limit = Limit(min=bounds.min, max=bounds.max)
            rule = Rule(metric=metric, block=limit, may_be_absent=bounds.may_be_absent)
            reasons.append(apply(rule, metrics, rules.told(metric)))
    for name, outcome in rules.not_run.items():
        if name not in run:
            metric = f"evaluate.suites.{name}"
            text = f"{rules.told(metric).title} was not measured: evaluate.suites does not run {name}."
            reasons.append(Reason(metric, outcome, None, None, None, None, None, text))
    return reasons


def ordered(reasons: Sequence[Reason]) -> list[Reason]:
    """Blocks first, then warnings, else in the given order."""
    return sorted(reasons, key=lambda reason: SEVERITY[reason.outcome])


def verdict_of(reasons: Sequence[Reason]) -> Outcome:
    """The worst outcome; without a reason nothing was judged, which blocks."""
    return min((reason.outcome for reason in reasons), key=lambda outcome: SEVERITY[outcome], default="block")
