"""Assignment: stable, in proportion to the shares, and independent between tests."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, kstest

from flywheel_tasks.online.assignment import arm_of, assign, staff_key
from tests.online.people import make_plan

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


def test_tests_of_a_layer_share_no_users_and_keep_their_shares() -> None:
    first = make_plan("g0001", share=0.1, salt="a")
    second = make_plan("g0002", share=0.15, salt="b").beside([first])
    third = make_plan("g0003", share=0.05, salt="c").beside([first, second])
    alone = make_plan("g0003", share=0.05, salt="c").beside([second])  # the first one has ended
    found = {
        user: [assign(p.model_dump(mode="json"), user) for p in (first, second, third, alone)]
        for user in USERS
    }
    for arms in found.values():
        assert sum(arm is not None for arm in arms[:3]) <= 1
        assert arms[1] is None or arms[3] is None
    for place, share in enumerate((0.1, 0.15, 0.05, 0.05)):
        counts = Counter(arms[place] for arms in found.values())
        observed = [counts["control"], counts["candidate"], counts[None]]
        expected = [share * len(USERS), share * len(USERS), (1 - 2 * share) * len(USERS)]
        assert chisquare(observed, expected).pvalue > 0.001


def test_a_test_beside_another_draws_its_arms_independently_of_it() -> None:
    # Over users of the later test, where the earlier one's point lies says nothing of the arm.
    first = make_plan("g0001", share=0.25, salt="a")
    second = make_plan("g0002", share=0.25, salt="b").beside([first]).model_dump(mode="json")
    half = plan("a", 0.75, 0.25)  # the point of salt a, in halves of what the first test left
    pairs = Counter((assign(second, user), assign(half, user)) for user in USERS)
    table = [[pairs[arm, other] for other in ("control", "candidate")] for arm in ("control", "candidate")]
    assert chi2_contingency(table).pvalue > 0.001


def test_another_layer_is_drawn_independently() -> None:
    policy = make_plan("g0001", share=0.5, salt="a")
    voice = make_plan("v1", share=0.5, salt="b", layer="voice").beside([policy])
    assert voice.excludes == ()
    pairs = Counter(
        (assign(policy.model_dump(mode="json"), user), assign(voice.model_dump(mode="json"), user))
        for user in USERS
    )
    arms = ("control", "candidate")
    assert chi2_contingency([[pairs[a, b] for b in arms] for a in arms]).pvalue > 0.001


def test_staff_get_the_arm_they_were_given_and_are_not_drawn() -> None:
    document = make_plan("g0001", share=0.5).model_dump(mode="json")
    overrides = {staff_key(document["salt"], "ada"): "candidate", staff_key(document["salt"], "bob"): None}
    assert arm_of(document, overrides, "ada") == ("candidate", False)
    assert arm_of(document, overrides, "bob") == (None, False)
    assert arm_of(document, overrides, "eve") == (assign(document, "eve"), True)
    assert "ada" not in str(overrides)
