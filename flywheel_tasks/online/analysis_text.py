"""An analysis as Markdown, for whoever approves a promotion."""

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "breadth": "Breadth: exposed users who wrote",
    "active_days": "Breadth: active days per exposed user",
    "depth": "Depth: messages per exposed user",
    "messages_per_active_user": "Messages per active user",
    "thumb_up_per_reply": "Thumbs up per reply",
    "love_per_reply": "Love per reply",
    "thumb_down_per_reply": "Thumbs down per reply",
    "regenerate_per_reply": "Regenerated per reply",
    "report_per_reply": "Reports per reply",
    "safety_violation_per_reply": "Safety violations per reply",
    "fallback_per_reply": "Fallbacks to the champion per reply",
    "latency_ms": "Latency of a reply (ms)",
}
_ADVICE = {
    "promote": "**The rule says: promote.**",
    "inconclusive": "**The rule says: inconclusive.** Who promotes decides without the test's support.",
    "reject": "**The rule says: reject.** A promotion will be refused.",
}


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.3f}"


def _figure(name: str, value: float | None) -> str:
    return f"{value:.1%}" if name == "breadth" and value is not None else _number(value)


def _lift(lift: Mapping[str, Any] | None) -> str:
    if lift is None or None in (lift["value"], lift["low"], lift["high"]):
        return "missing"
    return f"{_percent(lift['value'])} ({_percent(lift['low'])} to {_percent(lift['high'])})"


def _percent(change: float) -> str:
    """A change in percent; of the rarest signals an always-valid interval ends in the millions, which says no more."""
    return "over +1000%" if change > 1_000 else f"{change:+.1f}%"


def _metrics(metrics: Mapping[str, Any], estimate: str) -> list[str]:
    """Raw, CUPED and always-valid lifts side by side; the estimate that decides is marked."""
    marks = {name: " (decides)" if name == estimate else "" for name in ("raw", "cuped")}
    lines = [
        f"| metric | control | candidate | lift{marks['raw']} | lift with CUPED{marks['cuped']} | at every look |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in _NAMES.items():
        metric = metrics.get(name)
        if metric is None or metric["absent"]:
            continue
        cuped = metric["cuped"]
        decides = cuped if estimate == "cuped" and cuped is not None else metric
        lines.append(
            f"| {title} | {_figure(name, metric['control'])} | {_figure(name, metric['candidate'])} "
            f"| {_lift(metric['lift_percent'])} | {_lift(cuped['lift_percent']) if cuped else 'no past'} "
            f"| {_lift(decides['sequential'])} |"
        )
    absent = [f"{_NAMES[name]} ({metrics[name]['absent']})" for name in metrics if metrics[name]["absent"]]
    return [*lines, "", *([f"Not in the logs: {'; '.join(absent)}.", ""] if absent else [])]


def _days(rows: list[Mapping[str, Any]]) -> list[str]:
    if len(rows) < 2:
        return []
    lines = [
        "### Day by day (cumulative, raw; intervals not for early decisions)",
        "",
        "| day | users | breadth | depth |",
        "|---|---|---|---|",
    ]
    for row in rows:
        users = row["users"]["control"] + row["users"]["candidate"]
        lines.append(
            f"| {row['day'] + 1} | {users} | {_lift(row.get('breadth'))} | {_lift(row.get('depth'))} |"
        )
    return [*lines, ""]


def _segments(rows: list[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "### Segments (p-values corrected by Holm over all of them)",
        "",
        "| segment | metric | users | lift | p |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['segment']}: {_plain(row['value'])} | {row['metric']} | {row['lift_percent']['n']} "
        f"| {_lift(row['lift_percent'])} | {_number(row['pvalue_adjusted'])} |"
        for row in rows
    ]
    return [*lines, ""]


def _plain(value: str) -> str:
    """A value of a team's own column, which must not break the table or become markup."""
    return "".join(c if c.isalnum() or c in " ._-" else "_" for c in value)[:60]


def _left_out(logs: Mapping[str, Any]) -> list[str]:
    """What the tables have beside what counts."""
    found = [f"{n:,} messages of role {role}" for role, n in logs.get("ignored_messages", {}).items()]
    for name in ("exposures", "messages", "signals"):
        lacking = logs.get(f"{name}_without", {}).items()
        found += [f"{n:,} {name} without {column}" for column, n in lacking]
    return [f"Left out: {', '.join(found)}.", ""] if found else []


def analysis_markdown(analysis: Mapping[str, Any]) -> str:
    """The figures of an analysis.

    Args:
        analysis: the document of :func:`flywheel_tasks.online.analysis.analyse_population`.
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
            "**Simulated.** The users of this test are simulated: its figures say nothing of real people. "
            "Their replies have no latency, so it is no guardrail.",
            "",
        ]
    lines += _left_out(analysis["logs"])
    lines += [f"- **Invalid:** {reason}" for reason in analysis["reasons"]]
    if analysis["advice"]:
        lines += [_ADVICE[analysis["advice"]], "", *(f"- {why}" for why in analysis["advice_reasons"])]
    lines += ["", *_metrics(analysis["metrics"], analysis["rule"]["estimate"])]
    lines += [*_days(analysis["by_day"]), *_segments(analysis["segments"])]
    return "\n".join(lines)
