"""The style comparisons as a table, a row a feature and a column a comparison, and their trend as charts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_tasks.report import figures
from flywheel_tasks.style.features import amount

COLUMNS = {
    "generation": "champion to new model",
    "chosen_vs_rejected": "chosen against rejected",
    "high_vs_low_reward": "high against low reward",
    "accepted_vs_rejected": "accepted against others",
    "champion_to_start": "champion to before RL",
    "start_to_rl": "before RL to after RL",
}
POLICIES = ("champion_to_start", "start_to_rl")  # what the points of the trend differ by
MOST_TRENDS = 9
MOST_VALUES = 4


@dataclass(frozen=True)
class Cell:
    """One feature in one comparison.

    Attributes:
        text: the effect with its sign; empty where the comparison was not made.
        note: both means and the p-value.
        flagged: p below 0.05 after correction.
    """

    text: str
    note: str
    flagged: bool


@dataclass(frozen=True)
class StyleTable:
    """All comparisons.

    Attributes:
        columns: headings; where too few users answered to show any difference, they say so.
        tested: how many comparisons could show a difference.
        flagged: rows of features that some comparison flags, name and cells.
        quiet: the other rows.
    """

    columns: list[str]
    tested: int
    flagged: list[tuple[str, list[Cell]]]
    quiet: list[tuple[str, list[Cell]]]


def _cell(name: str, row: Any) -> Cell:
    if not isinstance(row, Mapping):
        return Cell("", "", False)
    effect, p_value = row.get("effect"), row.get("p_holm")
    change = f"{amount(name, row['before'])} → {amount(name, row['after'])}"
    note = change if p_value is None else f"{change}, p {p_value:.2g}"
    return Cell("all" if effect is None else f"{effect:+.2f}", note, bool(row.get("flagged")))


def _testable(comparison: Mapping[str, Any]) -> bool:
    return bool(comparison.get("testable", True))


def _heading(name: str, comparison: Mapping[str, Any]) -> str:
    untested = "" if _testable(comparison) else f"; not tested: {comparison['users']} users are too few"
    return f"{COLUMNS[name]} ({comparison['rows']}{untested})"


def style_table(metrics: Mapping[str, Any]) -> StyleTable:
    """The table of ``metrics/style.json``; without any comparison it has no columns."""
    found = figures.get(metrics, "style", "comparisons") or {}
    names = [name for name in COLUMNS if name in found]
    features = list(dict.fromkeys(feature for name in names for feature in found[name]["features"]))
    rows = [
        (feature, [_cell(feature, found[name]["features"].get(feature)) for name in names])
        for feature in features
    ]
    return StyleTable(
        [_heading(name, found[name]) for name in names],
        sum(_testable(found[name]) for name in names),
        [row for row in rows if any(cell.flagged for cell in row[1])],
        [row for row in rows if not any(cell.flagged for cell in row[1])],
    )


def asked_for(metrics: Mapping[str, Any]) -> str:
    """One sentence on the replies that the comparison of the generation leaves out; empty where it leaves out none."""
    found = figures.get(metrics, "style", "comparisons", "generation") or {}
    left = [f"{name} {count} of {found['rows']}" for name, count in (found.get("asked_for") or {}).items()]
    if not left:
        return ""
    return (
        f"Replies whose card asks for a feature say nothing of it and are left out there: {', '.join(left)}."
    )


@dataclass(frozen=True)
class Trend:
    """The mean of one feature over the policies of a generation, ready to draw in a box of 100 by 100.

    Attributes:
        name: of the feature.
        points: of a polyline.
        values: policy and value, as text.
        flagged: whether a comparison of two of these policies flags the feature.
    """

    name: str
    points: str
    values: list[tuple[str, str]]
    flagged: bool


def style_trends(metrics: Mapping[str, Any]) -> list[Trend]:
    """Charts of the features that are flagged or changed most, at most nine; none where there is no trend."""
    found = figures.get(metrics, "style", "trend") or {}
    names, features = found.get("points") or [], found.get("features") or {}
    if len(names) < 2:
        return []
    policies = [figures.get(metrics, "style", "comparisons", pair, "features") or {} for pair in POLICIES]
    flagged = {name for rows in policies for name, row in rows.items() if row.get("flagged")}

    return _charts(names, features, flagged)


def _charts(names: list[str], series: Mapping[str, list[float]], flagged: set[str]) -> list[Trend]:
    """Charts of what is flagged, then of what moves most for its size; of what does not move, none."""

    def moved(feature: str) -> float:
        values = series[feature]
        return (max(values) - min(values)) / (max(map(abs, values)) or 1.0)

    ranked = sorted(series, key=lambda feature: (feature not in flagged, -moved(feature), feature))
    charts = [_trend(name, names, series[name], name in flagged) for name in ranked if moved(name)]
    return charts[:MOST_TRENDS]


def generation_trends(generation: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Trend]:
    """Charts over the launched generations and this one: the features that this one changes most, at most nine.

    Args:
        generation: ``inputs/generation.json``, which has the earlier ones.
        metrics: of this one.

    Returns:
        the first point is the champion that the first of them was compared with. None without an earlier generation.
    """
    now = figures.get(metrics, "style", "comparisons", "generation", "features") or {}
    earlier = generation.get("styles_before") or []
    if not earlier or not now:
        return []
    names = ["before", *(item["generation"] for item in earlier), str(generation["generation"])]
    series = {
        feature: [
            earlier[0]["features"][feature][0],
            *(item["features"][feature][1] for item in earlier),
            row["after"],
        ]
        for feature, row in now.items()
        if all(feature in item["features"] for item in earlier)
    }
    return _charts(names, series, {feature for feature in series if now[feature].get("flagged")})


def _trend(name: str, names: list[str], values: list[float], flagged: bool) -> Trend:
    top = max(*values, 0.0) or 1.0
    step = 100 / (len(values) - 1)
    points = " ".join(
        f"{i * step:.2f},{97 - 94 * max(0.0, value) / top:.2f}" for i, value in enumerate(values)
    )
    shown = [(point, amount(name, float(value))) for point, value in zip(names, values, strict=True)]
    if len(shown) > MOST_VALUES:  # the line shows the others
        left = shown[1 - MOST_VALUES :]
        shown = [shown[0], (f"… {left[0][0]}", left[0][1]), *left[1:]]
    return Trend(name, points, shown, flagged)
