"""Assignment: stable, in proportion to the shares, and independent between tests."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, kstest

from flywheel_tasks.online.assignment import assign

USERS = [f"user-{number}" for number in range(8_000)]


def plan(salt: str = "g0001", control: float = 0.1, candidate: float = 0.1) -> dict:
    arms = [{"name": "control", "share": control}, {"name": "candidate", "share": candidate}]
    return {"experiment": "g0001", "salt": salt, "arms": arms}


@pytest.mark.parametrize(("control", "candidate"), [(0.1, 0.1), (0.5, 0.5), (0.05, 0.3)])
def test_arms_have_their_shares(control: float, candidate: float) -> None:
    found = Counter(assign(plan("s", control, candidate), user) for user in USERS)
    expected = {"control": control, "candidate": candidate, None: 1 - control - candidate}
    arms = [arm for arm, share in expected.items() if share > 0]
    assert set(found) == set(arms)
    observed = [found[arm] for arm in arms]
    assert chisquare(observed, [expected[arm] * len(USERS) for arm in arms]).pvalue > 0.001


def test_the_points_are_uniform() -> None:
    # A user's point is found by bisection on the control arm's share.
    def point(user: str) -> float:
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if assign(plan("s", middle, 0.0), user) else (middle, high)
        return low

    assert kstest([point(user) for user in USERS[:500]], "uniform").pvalue > 0.001


def test_two_tests_are_independent() -> None:
    pairs = Counter((assign(plan("first", 0.5, 0.5), u), assign(plan("second", 0.5, 0.5), u)) for u in USERS)
    arms = ("control", "candidate")
    assert chi2_contingency([[pairs[a, b] for b in arms] for a in arms]).pvalue > 0.001


@given(salt=st.text(min_size=1), user=st.text())
def test_a_user_stays_in_an_arm(salt: str, user: str) -> None:
    assert assign(plan(salt), user) == assign(plan(salt), user)
    # Growing the last arm moves nobody out of an arm.
    before, after = assign(plan(salt), user), assign(plan(salt, 0.1, 0.4), user)
    assert before is None or before == after


def test_known_users() -> None:
    # Fixed: another value would move the users of a running test.
    arms = [assign(plan("g0001-abc", 0.5, 0.5), f"user-{number}") for number in range(8)]
    known = "control control candidate candidate control control control control"
    assert arms == known.split()


def test_salt_and_user_are_kept_apart() -> None:
    halves = plan("ab", 0.5, 0.5), plan("a", 0.5, 0.5)
    assert any(assign(halves[0], f"c{n}") != assign(halves[1], f"bc{n}") for n in range(20))


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to more than 1"):
        assign(plan("s", 0.6, 0.5), "user")
