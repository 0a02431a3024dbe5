"""The style table and the trends: untested is not called equal, and a trend is marked by its own policies."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flywheel_tasks.report.page import render_page
from flywheel_tasks.report.styles import generation_trends, style_table, style_trends
from tests.evaluation.handmade import comparison, style_metrics

SAME = {"words": (26.4, 21.8, -0.25, 0.5), "emoji": (0.05, 0.2, 0.2, 1.0)}


def style(**comparisons: dict[str, Any]) -> dict[str, Any]:
    return {"style": style_metrics() | {"comparisons": comparisons}}


@pytest.mark.parametrize(
    ("testable", "said"),
    [
        ((True, True), "No feature differs beyond chance in any comparison.</p>"),
        ((True, False), "No feature differs beyond chance in any comparison that was tested.</p>"),
        (
            (False, False),
            "Nothing was tested: no comparison has enough users to tell a difference from chance.",
        ),
    ],
)
def test_what_no_one_could_see_is_not_called_chance(
    contents: Callable[..., Any], testable: tuple[bool, bool], said: str
) -> None:
    names = ("generation", "champion_to_start")
    found = style(
        **{name: comparison(**SAME) | {"testable": able} for name, able in zip(names, testable, strict=True)}
    )
    full = contents()
    page = render_page(replace(full, metrics=full.metrics | found))
    assert said in page
    assert page.count("; not tested: 9 users are too few)</th>") == testable.count(False)
    assert ("2 features that were not tested" in page) == (not any(testable))


def test_what_cards_ask_for_is_said_to_be_left_out(contents: Callable[..., Any]) -> None:
    full = contents()
    assert "are left out there" not in render_page(full)
    found = style(generation=comparison(**SAME) | {"asked_for": {"emoji": 12}})
    assert "are left out there: emoji 12 of 60." in render_page(replace(full, metrics=full.metrics | found))


def test_columns_say_what_they_compare() -> None:
    found = style(start_to_rl=comparison(**SAME), champion_to_start=comparison(**SAME))
    assert style_table(found).columns == ["champion to before RL (60)", "before RL to after RL (60)"]


def test_charts_over_the_launched_generations_end_in_this_one(contents: Callable[..., Any]) -> None:
    full = contents()
    assert "From generation to generation" not in render_page(full)
    means = [(20.0, 22.0), (21.5, 24.0), (24.5, 25.0), (25.0, 26.0)]
    earlier = [
        {"generation": f"g000{n}", "features": {"words": list(pair), "gone": [1.0, 2.0]}}
        for n, pair in enumerate(means, start=1)
    ]
    generation = {**full.generation, "generation": "g0005", "styles_before": earlier}
    found = style(generation=comparison(words=(26.4, 21.8, -0.9, 0.001), emoji=(0.05, 0.2, 0.2, 1.0)))
    (chart,) = generation_trends(generation, found)
    assert (chart.name, chart.flagged) == ("words", True)
    assert [name for name, _ in chart.values] == ["before", "… g0003", "g0004", "g0005"]
    assert len(chart.points.split()) == 6
    page = render_page(replace(full, generation=generation, metrics=full.metrics | found))
    assert "From generation to generation" in page


def test_a_trend_is_marked_by_comparisons_of_its_own_policies() -> None:
    flagged = comparison(words=(26.4, 21.8, -0.9, 0.001))
    elsewhere = style(generation=flagged, high_vs_low_reward=flagged, start_to_rl=comparison(**SAME))
    assert not [trend.name for trend in style_trends(elsewhere) if trend.flagged]
    for name in ("champion_to_start", "start_to_rl"):
        marked = [trend.name for trend in style_trends(style(**{name: flagged})) if trend.flagged]
        assert marked == ["words"]
    assert [name for name, _ in style_trends(elsewhere)[0].values] == ["champion", "before RL", "after RL"]
