"""What an approver reads of an analysis: every figure in its place, and no name that breaks the table."""

import numpy as np
import pytest

from flywheel_tasks.online import analysis_text
from flywheel_tasks.online.analysis import analyse_population
from flywheel_tasks.online.analysis_text import analysis_markdown
from tests.online import people
from tests.online.people import DIGEST, make_plan

PLAN = make_plan()


def cells(text: str, title: str) -> list[str]:
    """The cells of a row of a table in Markdown."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def lift_cell(lift: dict[str, float]) -> str:
    return f"{lift['value']:+.1f}% ({lift['low']:+.1f}% to {lift['high']:+.1f}%)"


@pytest.mark.parametrize("estimate", ["raw", "cuped"])
def test_an_approver_sees_the_lift_with_cuped_beside_the_raw_one(estimate: str) -> None:
    arm, users = people.drawn(np.random.default_rng(3), 2_000, 0.3)
    plan = make_plan(rule=people.RULE.model_copy(update={"estimate": estimate}))
    found = analyse_population(plan, people.population(arm, users), simulated=False)
    depth, text = found["metrics"]["depth"], analysis_markdown(found)
    decides = depth["cuped"] if estimate == "cuped" else depth
    lifts = [depth["lift_percent"], depth["cuped"]["lift_percent"], decides["sequential"]]
    assert cells(text, "Depth: messages per exposed user")[2:] == [lift_cell(lift) for lift in lifts]
    assert len({lift_cell(lift) for lift in lifts}) == 3
    marked = {"raw": ["lift (decides)", "lift with CUPED"], "cuped": ["lift", "lift with CUPED (decides)"]}
    assert cells(text, "metric")[2:] == [*marked[estimate], "at every look"]


def test_where_nobody_has_a_past_the_text_says_so() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 2_000, 0.3)
    past = {name: 0 * values for name, values in users.items() if name.startswith("pre_")}
    found = analyse_population(PLAN, people.population(arm, users | past), simulated=False)
    depth = found["metrics"]["depth"]
    assert depth["cuped"] is None
    assert cells(analysis_markdown(found), "Depth: messages per exposed user")[2:] == [
        lift_cell(depth["lift_percent"]),
        "no past",
        lift_cell(depth["sequential"]),
    ]


def test_the_table_is_not_broken_by_a_segments_name() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 1_000)
    land = np.where(np.arange(1_000) % 2, "a|b\n# x", "<script>")
    made = people.population(arm, users, changes={"land": land})
    found = analyse_population(PLAN, made, simulated=False, segments=("land",))
    shown = analysis_markdown(found)
    assert "land: a_b__ x" in shown
    assert "land: _script_" in shown
    assert found["model_digest"] == DIGEST


def test_an_interval_without_an_end_is_no_row_of_digits() -> None:
    lift = {"value": 203.0, "low": -100.0, "high": 90_035_007.6}
    assert analysis_text._lift(lift) == "+203.0% (-100.0% to over +1000%)"
    assert analysis_text._lift({**lift, "high": 1_000.0}) == "+203.0% (-100.0% to +1000.0%)"
