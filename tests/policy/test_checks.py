"""Which check is handed over, and when a run is stopped, on hand-made checks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from flywheel_tasks.policy import checks
from flywheel_tasks.policy.checks import Check, compare, nearest, over_optimised


def made(
    step: int,
    wins: list[float],
    rewards: list[float] | None = None,
    judge: list[float] | None = None,
    prompts_of_a_user: int = 1,
) -> Check:
    rewards, judge = rewards or [0.0] * len(wins), judge or [0.5] * len(wins)
    rows = [
        {"prompt_id": f"p{k}", "win": w, "reward": r, "champion_reward": 0.0, "judge": j}
        for k, (w, r, j) in enumerate(zip(wins, rewards, judge, strict=True))
    ]
    users = {row["prompt_id"]: f"u{k // prompts_of_a_user}" for k, row in enumerate(rows)}
    return Check(step, tuple(rows), users)


def at(step: int, win_rate: float) -> Check:
    return made(step, [win_rate] * 10)


def test_the_check_nearest_to_the_target_is_handed_over_not_the_last_or_the_best() -> None:
    assert nearest([at(0, 0.5), at(4, 0.58), at(8, 0.71)], 0.6).step == 4
    assert nearest([at(0, 0.5), at(4, 0.53), at(8, 0.57)], 0.6).step == 8
    assert nearest([at(0, 0.5), at(4, 0.75), at(8, 0.9)], 0.6).step == 0
    assert nearest([at(4, 0.625), at(8, 0.575)], 0.6).step == 4  # equally near: the shorter way


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_no_other_check_is_nearer(rates: list[float], target: float) -> None:
    checks = [at(step, rate) for step, rate in enumerate(rates)]
    chosen = nearest(checks, target)
    assert abs(chosen.mean("win") - target) == min(abs(check.mean("win") - target) for check in checks)


def test_the_expected_win_rate_is_right_for_normal_gains_and_steadier_than_wins_counted() -> None:
    gains = np.random.default_rng(5).normal(0.25, 1.0, (1000, 32))
    checks = [made(0, (row > 0).astype(float).tolist(), row.tolist()) for row in gains]
    expected = [check.expected_win_rate() for check in checks]
    assert np.mean(expected) == pytest.approx(norm.cdf(0.25), abs=0.01)
    assert np.std(expected) < 0.9 * np.std([check.mean("win") for check in checks])
    assert made(0, [0.5, 0.5]).expected_win_rate() == 0.5  # no gain anywhere: the wins themselves


def test_equal_replies_and_equal_rewards_are_ties() -> None:
    replies = [
        {"reply": text, "reward": reward} for text, reward in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 0.0))
    ]
    champion = [
        {"reply": text, "reward": reward} for text, reward in (("a", 1.0), ("x", 2.0), ("x", 1.0), ("x", 1.0))
    ]
    assert compare(4, replies, champion, [0.5] * 4).values("win") == [0.5, 0.5, 1.0, 0.0]


def test_reward_up_and_judge_down_is_over_optimised_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    start = random.uniform(0.4, 0.6, 30)
    higher = random.normal(1.0, 0.1, 30).tolist()
    falls = (start - random.uniform(0.05, 0.25, 30)).tolist()
    noise = (start + random.normal(0, 0.1, 30)).tolist()
    first = made(0, [0.5] * 30, [0.0] * 30, start.tolist())
    assert over_optimised([first, made(4, [1.0] * 30, higher, falls)], 1)
    assert not over_optimised([first, made(4, [1.0] * 30, higher, noise)], 1)
    hardly = random.normal(0.1, 1.0, 30).tolist()
    assert not over_optimised([first, made(4, [1.0] * 30, hardly, falls)], 1)
    lower = [-value for value in higher]
    assert not over_optimised([first, made(4, [0.0] * 30, lower, falls)], 1)  # worse, but not by gaming
    assert not over_optimised([first], 1)


def test_a_run_that_the_judge_is_indifferent_to_is_stopped_no_more_often_than_stated() -> None:
    """Ten checks of ten judged users, reward ever rising, a judge that says the same but for noise: 2.5% of runs."""
    random = np.random.default_rng(0)

    def stopped(falls: float) -> bool:
        judge = random.normal(0.5, 0.1, (11, 10)) - falls * np.arange(11)[:, None]
        rewards = random.normal(0, 0.1, (11, 10)) + np.arange(11)[:, None]
        checks = [made(step, [0.5] * 10, rewards[step].tolist(), judge[step].tolist()) for step in range(11)]
        return any(over_optimised(checks[: seen + 1], 10) for seen in range(1, 11))

    assert np.mean([stopped(0.0) for _ in range(300)]) < 0.05
    assert np.mean([stopped(0.04) for _ in range(30)]) > 0.9, "a real fall is found"


def test_prompts_of_one_user_are_no_independent_evidence() -> None:
    random = np.random.default_rng(0)
    start = np.full(30, 0.5)
    # Two users like the new replies less and one does not mind; within a user all prompts say about the same.
    falls = (start - np.repeat([0.1, 0.2, 0.0], 10) + random.normal(0, 0.01, 30)).tolist()
    higher = random.normal(1.0, 0.1, 30).tolist()

    def stops(prompts_of_a_user: int) -> bool:
        first = made(0, [0.5] * 30, [0.0] * 30, start.tolist(), prompts_of_a_user)
        return over_optimised([first, made(4, [1.0] * 30, higher, falls, prompts_of_a_user)], 1)

    assert stops(1), "thirty users, twenty of whom like it less"
    assert not stops(10), "three users"
    assert not stops(30), "one user"
    first = made(0, [0.5] * 3, judge=[0.2, 0.4, 0.9], prompts_of_a_user=2)
    assert first.by_user("judge").tolist() == pytest.approx([0.3, 0.9])


@pytest.mark.parametrize(("users", "looks"), [(3, 1), (10, 5), (20, 8)])
def test_the_fall_that_the_judge_could_have_seen_stops_one_of_two_runs(users: int, looks: int) -> None:
    random = np.random.default_rng(0)
    needed = checks.spreads_to_stop(users, looks)
    assert needed is not None

    def stopped() -> bool:
        first = made(0, [0.5] * users, random.normal(0, 0.1, users).tolist(), [0.6] * users)
        falls = 0.6 - 0.01 * (needed + random.normal(0, 1, users))
        higher = random.normal(99, 0.1, users).tolist()
        return over_optimised([first, made(4, [1.0] * users, higher, falls.tolist())], looks)

    assert np.mean([stopped() for _ in range(600)]) == pytest.approx(0.5, abs=0.06)


def test_the_metrics_say_what_the_judge_could_have_seen() -> None:
    def told(falls: list[float], prompts_of_a_user: int = 1) -> dict[str, Any]:
        count = len(falls)
        first = made(0, [0.5] * count, judge=[0.6] * count, prompts_of_a_user=prompts_of_a_user)
        judge = [0.6 - fall for fall in falls]
        last = made(4, [0.5] * count, judge=judge, prompts_of_a_user=prompts_of_a_user)
        return checks.judge_stop([first, last], 5)

    falls = [0.1, -0.1] * 10
    needed = checks.spreads_to_stop(20, 5)
    assert needed is not None
    found = told(falls)
    assert (found["prompts"], found["users"]) == (20, 20)
    assert found["noticed_fall"] == pytest.approx(needed * np.std(falls, ddof=1))
    few = "too few users to tell"
    assert told(falls, 10) == {
        "prompts": 20,
        "users": 2,
        "noticed_fall": None,
        "reason": "every user's reading changed alike",
    }
    assert told([0.1] * 10 + [-0.1] * 10, 10) == {
        "prompts": 20,
        "users": 2,
        "noticed_fall": None,
        "reason": few,
    }
    assert told(falls, 20) == {"prompts": 20, "users": 1, "noticed_fall": None, "reason": few}
