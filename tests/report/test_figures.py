import pytest

from flywheel_tasks.report import figures
from flywheel_tasks.report.contents import Curve


def test_numbers_for_people() -> None:
    assert [figures.show(x) for x in (None, 3, 12345, 0.12345, 1234.5, 96.0)] == [
        "not measured", "3", "12,345", "0.123", "1,234", "96",
    ]  # fmt: skip
    assert figures.percent(0.6543) == "65.4%"


def test_what_was_removed_is_kept_apart() -> None:
    metrics = {
        "read": 10,
        "quarantined": {"total": 2, "not_json": 2},
        "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9},
    }
    assert [f.label for f in figures.figures(metrics, removed=True)] == [
        "quarantined › total",
        "quarantined › not json",
    ]
    rest = figures.figures(metrics, removed=False)
    assert [(f.label, f.text, f.note) for f in rest] == [
        ("read", "10", ""),
        ("accuracy", "0.5", "0.4–0.6, n = 9"),
    ]
    assert figures.figures(None) == []


def test_bars_stay_in_the_track_and_missing_ones_are_said() -> None:
    bar = figures.bar("user", {"value": 0.5, "low": -0.2, "high": 1.4, "n": 3})
    assert (bar.low, bar.value, bar.high) == (0, 50, 100)
    assert figures.bar("user", {"value": None, "low": None, "high": None}).value is None
    assert figures.bar("user", None).text == "not measured"
    missing = {"value": None, "low": None, "high": None, "reason": "no internal prompts"}
    assert figures.bar("internal", missing).note == "no internal prompts"


def test_charts_scale_to_their_values() -> None:
    (chart,) = figures.charts([Curve("sft", [1, 2, 3], {"loss": [3.0, None, 1.0], "lr": [1, 1, 1]})])
    assert chart.points == "0.00,3.00 100.00,97.00"
    assert (chart.title, chart.low, chart.high, chart.last) == ("SFT: loss", "1", "3", "1")
    (chart,) = figures.charts([Curve("rl_checks", [0, 4, 8], {"reward": [None, 0.1, 0.2]})])
    assert (chart.first, chart.steps) == ("4", "8"), "the first step with a value"
    (chart,) = figures.charts([Curve("rl_checks", [0, 8], {"reward": [0.1, 0.2]})])
    assert (chart.first, chart.steps) == ("0", "8")
    assert figures.charts([Curve("sft", [1], {"loss": [1.0]})]) == []


def test_what_training_reached_is_told_beside_what_was_handed_over() -> None:
    estimate = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 40}
    heldout = {
        "reward_before": 0.5,
        "reward_after": 0.6,
        "reward_gain": estimate,
        "reward_gain_last": estimate | {"value": 0.3},
    }
    chosen = {"step": 2, "last_step": 4, "win_rate": 0.59, "target_win_rate": 0.6, "stopped_early": False}
    told = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen}})
    assert "0.6 after; gain 0.1 " in told
    assert "the checkpoint after step 2 was handed over" in told
    assert told.endswith("By the last check it had gained 0.3 (0.05–0.2, n = 40).")
    assert "is nearest to the target of 60% among the checks that may be handed over." in told
    assert "stopped" not in told
    assert "too much before RL" not in told
    told = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen | {"step": 4}}})
    assert "last check" not in told
    told = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen | {"start_share": 0.5}}})
    assert "won too much before RL, which started at 50.0% of the way from the champion to it." in told
    read = {"prompts": 20, "users": 17, "noticed_fall": 0.1234}
    told = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen, "judge_stop": read}})
    assert told.endswith(
        "The pairwise judge read replies to 20 prompts of 17 users: a fall of its mean by 0.123 would be seen in half "
        "of all cases."
    )
    few = read | {"noticed_fall": None, "reason": "too few users to tell"}
    told = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen, "judge_stop": few}})
    assert told.endswith("of 17 users: whether it fell cannot be told (too few users to tell).")


@pytest.mark.parametrize(
    ("stopped", "told"),
    [
        ("kl is 0.52, the limit is 0.5", "The run was stopped: kl is 0.52, the limit is 0.5."),
        (None, "The run was stopped: reward rose while the pairwise judge fell."),
    ],
)
def test_the_reason_of_a_stop_and_the_steps_done_are_told(stopped: str | None, told: str) -> None:
    chosen = {"step": 4, "last_step": 4, "win_rate": 0.59, "target_win_rate": 0.6, "stopped_early": True}
    heldout = {
        "reward_before": 0.5,
        "reward_after": 0.6,
        "reward_gain": {"value": 0.1, "low": None, "high": None, "n": 40},
    }
    train = {"steps": 6, "drift": {"stopped": stopped}}
    text = figures.rl_gain({"rl": {"heldout": heldout, "checkpoint": chosen, "train": train}})
    assert text.endswith(told)
    assert "Of 6 steps, the checkpoint after step 4 was handed over" in text
    assert "gain 0.1 (no interval, n = 40)" in text
