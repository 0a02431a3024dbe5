"""An analysis as Markdown, for whoever approves a promotion."""

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "breadth": "Breadth: exposed users who wrote",
    "depth": "Depth: messages per exposed user",
    "messages_per_active_user": "Messages per active user",
    "thumb_up_per_reply": "Thumbs up per reply",
    "thumb_down_per_reply": "Thumbs down per reply",
    "love_per_reply": "Love per reply",
    "regenerate_per_reply": "Regenerated per reply",
}


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.3f}"


def _figure(name: str, value: float | None) -> str:
    return f"{value:.1%}" if name == "breadth" and value is not None else _number(value)


def _lift(lift: Mapping[str, Any]) -> str:
    if None in (lift["value"], lift["low"], lift["high"]):
        return "missing"
    return f"{lift['value']:+.1f}% ({lift['low']:+.1f}% to {lift['high']:+.1f}%)"


def analysis_markdown(analysis: Mapping[str, Any]) -> str:
    """The figures of an analysis.

    Args:
        analysis: the document of :func:`flywheel_tasks.online.analysis.analyse_exposed`.
    """
    users, ratio = analysis["users"], analysis["sample_ratio"]["pvalue"]
    lines = [
        f"## A/B test of {analysis['generation']}",
        "",
        f"Users: {users['control']} control, {users['candidate']} candidate "
        f"(sample ratio p = {_number(ratio)}). Intervals: {analysis['confidence']:.0%}.",
        "",
    ]
    if analysis["simulated"]:
        lines += [
            "**Simulated.** The users of this test are simulated: its figures say nothing of real people.",
            "",
        ]
    lines += [f"- **Invalid:** {reason}" for reason in analysis["reasons"]]
    lines += ["| metric | control | candidate | lift |", "|---|---|---|---|"]
    lines += [
        f"| {title} | {_figure(name, metric['control'])} | {_figure(name, metric['candidate'])} "
        f"| {_lift(metric['lift_percent'])} |"
        for name, title in _NAMES.items()
        if (metric := analysis["metrics"].get(name)) is not None
    ]
    return "\n".join(lines)
