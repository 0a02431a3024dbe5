"""The decision rule: what a valid analysis advises, from the figures and the rule that the plan fixed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tea_tasting as tt

from flywheel_tasks.online import sequential
from flywheel_tasks.online.metrics import (
    METRICS,
    Estimate,
    Metric,
    always_valid,
    compare,
    decisive,
    has_past,
    lift_percent,
    one_arm,
)
from flywheel_tasks.online.sums import Sums
from flywheel_tasks.storage.documents import finite
from flywheel_tasks.storage.experiment_records import Advice, Rule


def adjusted(
    results: Mapping[Any, tt.experiment.ExperimentResult], alpha: float
) -> dict[tuple[Any, str], float]:
    """Holm's step-down correction over all comparisons and metrics at once.

    Args:
        results: by comparison, results by metric.
        alpha: family-wise error rate.

    Returns:
        adjusted p-values by comparison and metric; one that is no number is left out and not counted.
    """
    real = {
        key: tt.experiment.ExperimentResult(
            {name: value for name, value in result.items() if 0 <= value.pvalue <= 1}
        )
        for key, result in results.items()
    }
    real = {key: result for key, result in real.items() if len(result)}
    if not real:
        return {}
    holm = tt.adjust_fwer(real, alpha=alpha, arbitrary_dependence=True, method="bonferroni")
    return {
        (key, name): min(1.0, float(value["pvalue_adj"]))
        for key, result in holm.items()
        for name, value in result.items()
    }


def _estimate(name: str, arms: Mapping[str, Sums], rule: Rule) -> Estimate:
    return "cuped" if rule.estimate == "cuped" and has_past(METRICS[name], arms) else "raw"


def _limit(metric: Metric, arms: Mapping[str, Sums], rule: Rule) -> tuple[float, float] | None:
    """How much of a metric is no harm, and the standard error of that; None: what control has."""
    if metric.name == "fallback_per_reply":
        return rule.tolerated_fallback, 0.0
    if metric.name == "latency_ms":
        value, error = one_arm(metric, arms["control"])
        longer = 1 + rule.tolerated_latency_percent / 100
        return longer * value, longer * error
    return None


def _beyond(
    metric: Metric, arms: Mapping[str, Sums], limit: tuple[float, float], planned: int, level: float
) -> dict[str, float]:
    """The candidate against a limit that is tolerated, under the bound of :func:`always_valid`.

    The limit is tested, not the estimate compared with it: an arm that is a little below would else exceed it by chance
    at one look or another.

    Returns:
        ``candidate`` and ``tolerated`` (of the metric, the arm and the limit), ``z``, ``pvalue``.
    """
    value, error = one_arm(metric, arms["candidate"])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = float(np.divide(value - limit[0], math.hypot(error, limit[1])))
    found = {"candidate": value, "tolerated": limit[0], "z": z, "pvalue": math.nan}
    if z <= 0:
        found["pvalue"] = 1.0
    elif math.isfinite(z):
        n = sum(sums.n for sums in arms.values())
        found["pvalue"] = sequential.pvalue(z, n, planned, level)
    return found


def _sentence(metric: Metric, view: Mapping[str, float], level: float) -> str:
    change = f"worse by {view['value']:+.1f}%" if math.isfinite(view["value"]) else "worse than none"
    if "tolerated" in view:
        form = ".2%" if metric.denom == "replies" else ".0f"
        change += f": {view['candidate']:{form}}, up to {view['tolerated']:{form}} is tolerated"
    return f"{metric.title}: {change} (always-valid p = {view['pvalue']:.2g} < {level:.2g})"


def harms(arms: Mapping[str, Sums], rule: Rule) -> tuple[dict[str, Any], list[str]]:
    """The guardrails under their own, sequential bound.

    Every guardrail gets an equal part of ``rule.guardrail_alpha``, over all looks; so does every primary metric,
    since a test that hurts what it is for must end too. Nothing of ``rule.alpha`` is spent.

    Args:
        arms: sums of ``control`` and ``candidate``.
        rule: of the plan.

    Returns:
        per metric its lift with the always-valid interval, and p-value (with what is tolerated, if anything is, of the
        candidate against that); and the harms found, as sentences.
    """
    watched = list(dict.fromkeys((*rule.guardrails, *rule.primary)))
    level = rule.guardrail_alpha / len(watched)
    enough = min(sums.n for sums in arms.values()) >= rule.min_users_per_arm
    found, sentences = {}, []
    for name in watched:
        metric = METRICS[name]
        view = always_valid(metric, arms, _estimate(name, arms, rule), rule.planned_users, level)
        if (limit := _limit(metric, arms, rule)) is not None:
            view |= _beyond(metric, arms, limit, rule.planned_users, level)
        worse = view["z"] > 0 if metric.better == "lower" else view["z"] < 0
        # Without any spread (every reply of one arm was refused, say) there is no p-value, and no doubt: but of two or
        # three users all may be alike by chance.
        if worse and enough and math.isinf(view["z"]):
            view["pvalue"] = 0.0
        found[name] = view
        if worse and view["pvalue"] < level:
            sentences.append(_sentence(metric, view, level))
    return finite(found), sentences


def advise(
    metrics: Mapping[str, Any], arms: Mapping[str, Sums], harm: list[str], rule: Rule
) -> tuple[Advice, list[str], dict[str, float]]:
    """What the rule says of a valid test.

    Reject, if a guardrail is shown to be harmed or a primary metric is significantly worse; promote, if none is and
    at least one primary metric is significantly better (Holm over the primary metrics, at ``rule.alpha``); else
    inconclusive.

    Args:
        metrics: figures by metric.
        arms: sums of ``control`` and ``candidate``.
        harm: of :func:`harms`.
        rule: of the plan.

    Returns:
        the advice, why, and the adjusted p-values of the primary metrics.
    """
    results = tt.experiment.ExperimentResult(
        {name: compare(METRICS[name], arms, _estimate(name, arms, rule), rule.alpha) for name in rule.primary}
    )
    pvalues = {name: value for (_, name), value in adjusted({"primary": results}, rule.alpha).items()}
    better: list[str] = []
    worse: list[str] = []
    for name, value in pvalues.items():
        if value < rule.alpha:
            lift = decisive(metrics[name], rule.estimate)["lift_percent"]["value"]
            (better if (lift > 0) == (METRICS[name].better == "higher") else worse).append(name)
    reasons = [*harm, *(f"{METRICS[name].title}: significantly worse" for name in worse)]
    if reasons:
        return "reject", reasons, pvalues
    if better:
        return "promote", [f"{METRICS[name].title}: significantly better" for name in better], pvalues
    return "inconclusive", ["no primary metric is significantly better or worse"], pvalues


def segment_lifts(
    segments: Mapping[str, Mapping[str, Mapping[str, Sums]]], rule: Rule
) -> list[dict[str, Any]]:
    """Primary metrics within segments, raw, with p-values corrected over all of them (Holm).

    Args:
        segments: sums by segment (``cohort``), value (``new``) and arm.
        rule: of the plan.

    Returns:
        rows: ``segment``, ``value``, ``metric``, ``users``, ``control``, ``candidate``, ``lift_percent``, ``pvalue``,
        ``pvalue_adjusted``. A value with fewer than two users in an arm has none.
    """
    results = {
        (segment, value): tt.experiment.ExperimentResult(
            {name: compare(METRICS[name], arms, "raw", rule.alpha) for name in rule.primary}
        )
        for segment, values in segments.items()
        for value, arms in values.items()
        if len(arms) == 2 and min(sums.n for sums in arms.values()) > 1
    }
    corrected = adjusted(results, rule.alpha)
    rows = []
    for (segment, value), result in results.items():
        users = {arm: sums.n for arm, sums in segments[segment][value].items()}
        for name, figure in result.items():
            rows.append(
                {
                    "segment": segment,
                    "value": value,
                    "metric": name,
                    "users": users,
                    "control": float(figure.control),
                    "candidate": float(figure.treatment),
                    "lift_percent": {**lift_percent(figure), "n": sum(users.values())},
                    "pvalue": float(figure.pvalue),
                    "pvalue_adjusted": corrected.get(((segment, value), name)),
                }
            )
    return list(finite(rows))
