"""Gate rules on style: a feature that jumped from champion to candidate, and that the reward model likes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flywheel_tasks.evaluation.gate_rules import StyleRule
from flywheel_tasks.evaluation.rules import Outcome, Reason
from flywheel_tasks.style.features import FEATURES, amount

GENERATION = "style.comparisons.generation"


def _reason(metric: str, outcome: Outcome, value: float | None, rule: StyleRule, text: str) -> Reason:
    block: dict[str, float | None] = {"min": -rule.block_effect, "max": rule.block_effect}
    warn: dict[str, float | None] = {"min": -rule.warn_effect, "max": rule.warn_effect}
    return Reason(metric, outcome, value, None, None, block, warn, text)


def _node(metrics: Mapping[str, Any], comparison: str) -> Mapping[str, Any]:
    return ((metrics.get("style") or {}).get("comparisons") or {}).get(comparison) or {}


def _features(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found = node.get("features")
    return found if isinstance(found, Mapping) and found else None


def style_reasons(rule: StyleRule, metrics: Mapping[str, Any]) -> list[Reason]:
    """One reason for each feature that jumped, or one that says that none did.

    A jump, up or down, warns. It blocks where the feature is an artifact, there is much more of it, and replies of
    higher reward have more of it too (or that was not measured): the policy has learned what the reward model likes.
    Of what no rewarded reply has, RL tells it: it follows the reward.
    Too few users to tell any change from chance are a warning: nothing of style was tested then, or nothing of a
    feature that most cards ask for.

    Args:
        rule: the limits.
        metrics: of all stages, by stage.
    """
    generation, rewarded = _node(metrics, "generation"), _node(metrics, "high_vs_low_reward")
    by_rl = _node(metrics, "start_to_rl")
    features = _features(generation)
    if features is None:
        text = f"Style ({GENERATION}) is missing; what is not measured does not pass."
        return [_reason(GENERATION, "block", None, rule, text)]
    if not generation.get("testable", True):
        text = (
            f"Style: {generation['users']} users are too few to tell any of {len(features)} style features "
            "from chance: nothing of style was tested, look at the replies."
        )
        return [_reason(GENERATION, "warn", None, rule, text)]
    reasons = [
        reason
        for name, row in features.items()
        if (reason := _jump(name, row, _liked(name, rewarded, by_rl), rule)) is not None
    ]
    if untold := generation.get("untold"):
        text = (
            f"Style: so many cards ask for {', '.join(untold)} that too few other users are left to tell a change "
            "from chance: look at the replies."
        )
        reasons.append(_reason(f"{GENERATION}.untold", "warn", None, rule, text))
    if reasons:
        return reasons
    text = (
        f"Style: none of {len(features)} style features changed by more than {rule.warn_effect:g} "
        "standard deviations with p below 0.05."
    )
    return [_reason(GENERATION, "pass", 0.0, rule, text)]


class _Liking(NamedTuple):
    """What tells whether the reward drives a feature: its figures (None: not measured), and how that is said."""

    row: Mapping[str, Any] | None
    said: str


def _tested(name: str, comparison: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A feature's figures in a comparison; None where there are none, or too few users for any change to show."""
    if not comparison.get("testable", True) or name in comparison.get("untold", ()):
        return None
    return (_features(comparison) or {}).get(name)


def _liked(name: str, rewarded: Mapping[str, Any], by_rl: Mapping[str, Any]) -> _Liking:
    found = _tested(name, rewarded)
    if found is not None and found["before"] == found["after"] == 0:
        return _Liking(_tested(name, by_rl), ", as RL brought it, which follows the reward")
    return _Liking(found, ", as replies of higher reward have it")


def _size(effect: float | None) -> float:
    """An effect without a number is a change that every reply shows alike: larger than any limit."""
    return float("inf") if effect is None else abs(effect)


def _change(name: str, before: float, after: float) -> str:
    """What changed, in words; what was mined from the data goes by its own name."""
    feature = FEATURES.get(name)
    first, now = amount(name, before), amount(name, after)
    if feature is None:
        return f"“{name}” in {first} of the replies before, in {now} now"
    match feature.kind:
        case "binary":
            return f"a reply {feature.meaning}: {first} of the replies before, {now} now"
        case "share":
            return f"{feature.meaning}: {first} before, {now} now"
        case "count":
            return f"{feature.meaning}, {first} a reply before, {now} now"


def _jump(name: str, row: Mapping[str, Any], liking: _Liking, rule: StyleRule) -> Reason | None:
    if not row["flagged"] or _size(row["effect"]) < rule.warn_effect:
        return None
    up = row["after"] > row["before"]
    liked = liking.row
    driven = liked is None or (
        _size(liked["effect"]) >= rule.reward_effect
        and liked["flagged"]
        and (liked["after"] > liked["before"]) == up
    )
    artifact = name not in FEATURES or FEATURES[name].artifact
    blocked = up and artifact and driven and _size(row["effect"]) >= rule.block_effect
    size = "the same in every reply" if row["effect"] is None else f"effect {row['effect']:+.2f}"
    change = f"{_change(name, row['before'], row['after'])} ({size}, p = {row['p_holm']:.2g})"
    why = " and that was not compared with the reward" if liked is None else liking.said if driven else ""
    verdict = "blocked as a learned artifact" if blocked else "look before it is optimised further"
    return _reason(
        f"{GENERATION}.{name}",
        "block" if blocked else "warn",
        row["effect"],
        rule,
        f"Style: {change}{why}: {verdict}.",
    )
