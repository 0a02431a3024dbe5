"""How good the reward models are, as a table and in sentences."""

from collections.abc import Mapping
from typing import Any

from flywheel_tasks.report import figures

MODELS = {"train_pointwise_rm": "Pointwise", "train_pairwise_rm": "Pairwise"}
SETS = {
    "all held-out pairs": ("heldout",),
    "consensus of several reviews": ("heldout", "by_set", "consensus"),
    "one review a pair": ("heldout", "by_set", "single_review"),
}
MEASURES = {"accuracy": True, "brier": False, "calibration_error": False}  # in percent or not


def quality_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of the table: model, set of pairs, how many, and each measure with its interval as ``<measure>_note``."""
    rows = []
    for stage, model in MODELS.items():
        for name, path in SETS.items():
            found = figures.get(metrics, stage, *path)
            if not isinstance(found, Mapping) or not figures.is_estimate(found.get("brier")):
                continue
            row = {"model": model, "set": name, "pairs": figures.show(found["pairs"])}
            for measure, as_percent in MEASURES.items():
                node = found[measure]
                show = figures.percent if as_percent else figures.show
                row[measure] = show(node["value"])
                row[f"{measure}_note"] = figures.estimate_note({**node, "n": None}, as_percent=as_percent)
            rows.append(row)
    return rows


def learned_from(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence a model that learned pairs of earlier launched generations: how many, beside its own."""
    found = ((name, figures.get(metrics, stage, "pairs")) for stage, name in MODELS.items())
    return [_pairs(name, node) for name, node in found if isinstance(node, Mapping) and node["by_generation"]]


def _pairs(model: str, node: Mapping[str, Any]) -> str:
    parts = []
    for generation, account in node["by_generation"].items():
        lost = " (DVC has lost them)" if account.get("lost") else ""
        parts.append(f"{account['used']} of {account['launched_with']} of {generation}{lost}")
    return f"{model}: learned {node['own']} pairs of this generation, and of earlier ones {', '.join(parts)}."


def one_feature_judges(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence a model: what looking at one feature of the surface would reach on the same held-out pairs."""
    found = ((name, figures.get(metrics, stage, "heldout")) for stage, name in MODELS.items())
    return [
        f"{name}: {figures.percent(node['accuracy']['value'])} right on all held-out pairs; a judge that looks at "
        f"one feature alone ({node['surface']['feature']}: {node['surface']['better']} is better), "
        f"{figures.percent(node['surface']['accuracy']['value'])}."
        for name, node in found
        if isinstance(node, Mapping)
        and "surface" in node
        and node["surface"]["accuracy"]["value"] is not None
    ]


def card_readers(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence a model: how often the card's rules move it towards the reply that keeps them."""
    found = ((name, figures.get(metrics, stage, "card_reading")) for stage, name in MODELS.items())
    return [
        f"{name}: other rules on the card move it towards the reply that keeps them in {_share(node['share'])} of "
        f"{node['twins']} cases; 50% where a model reads no rule."
        for name, node in found
        if isinstance(node, Mapping) and node["share"]["value"] is not None
    ]


def _share(node: Mapping[str, Any]) -> str:
    return f"{figures.percent(node['value'])} ({figures.percent(node['low'])} to {figures.percent(node['high'])})"


def against_earlier(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence a model: how it compares with the last launched generation's on the same pairs, or why not."""
    found = ((name, figures.get(metrics, stage, "earlier")) for stage, name in MODELS.items())
    return [_sentence(name, node) for name, node in found if isinstance(node, Mapping)]


def _sentence(model: str, node: Mapping[str, Any]) -> str:
    gain = node["accuracy_gain"]
    if gain["value"] is None:
        return f"{model}: {gain.get('reason') or figures.MISSING}."
    left_out = node["left_out_trained_on"]
    rest = f"; {left_out} pairs of users whom it was trained on are left out" if left_out else ""
    then, brier = node["accuracy"]["value"], node["brier_gain"]
    return (
        f"{model}: {figures.percent(then + gain['value'])} right, the model of {node['generation']} "
        f"{figures.percent(then)} on the same {node['pairs']} pairs{rest}; difference {_points(gain)}. Only this one "
        f"right: {node['only_this_right']}, only the earlier one: {node['only_earlier_right']}. Brier score lower by "
        f"{figures.show(brier['value'])}{_interval(brier)}."
    )


def _points(gain: Mapping[str, Any]) -> str:
    interval = (
        ""
        if gain["low"] is None
        else f" (95% interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    )
    return f"{100 * gain['value']:+.1f} points{interval}"


def _interval(node: Mapping[str, Any]) -> str:
    if node["low"] is None:
        return ""
    return f" (95% interval {figures.show(node['low'])} to {figures.show(node['high'])})"
