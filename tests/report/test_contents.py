from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.report.contents import most_different, read_curve


def test_a_curve_is_read_and_gaps_stay_gaps(tmp_path: Path) -> None:
    path = tmp_path / "rl.csv"
    path.write_text("step,loss,reward\n1,0.5,\n2,nan,0.25\n")
    curve = read_curve(path)
    assert (curve.name, curve.steps) == ("rl", [1.0, 2.0])
    assert curve.series == {"loss": [0.5, None], "reward": [None, 0.25]}


@pytest.mark.parametrize(("text", "words"), [("loss\n1\n", "no column step"), ("step,loss\n1,x\n", "line 2")])
def test_a_bad_curve_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rl.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"rl\.csv.*{words}"):
        read_curve(path)


def pairs(*gains: float) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{i}",
            "champion_reply": "old",
            "candidate_reply": "new" if gain else "old",
            "champion_reward": 0.0,
            "candidate_reward": gain,
        }
        for i, gain in enumerate(gains)
    ]


def test_gains_and_losses_are_both_shown() -> None:
    rows = pairs(0.1, 5, 3, -1, -4, 2, 0, -0.5, 4)
    assert [row["candidate_reward"] for row in most_different(rows, 4)] == [5, 4, -1, -4]
    assert [row["candidate_reward"] for row in most_different(rows, 100)] == [5, 4, 3, 2, 0.1, -0.5, -1, -4]


def test_where_one_kind_is_short_the_other_fills_up() -> None:
    assert [row["candidate_reward"] for row in most_different(pairs(1, 2, 3, 4, -1), 4)] == [4, 3, 2, -1]
    assert [row["candidate_reward"] for row in most_different(pairs(-1, -2, -3), 2)] == [-2, -3]
    assert most_different(pairs(0, 0), 4) == []
