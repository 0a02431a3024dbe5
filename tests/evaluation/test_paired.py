from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from flywheel_tasks.evaluation import production
from flywheel_tasks.evaluation.gate_rules import FILE, load_rules
from flywheel_tasks.evaluation.intervals import Estimate, mean, share
from flywheel_tasks.evaluation.paired import NO_DIFFERENCE, no_surer_than_the_test, sign_flip, user_totals
from flywheel_tasks.evaluation.rules import apply
from tests.conftest import PROJECT
from tests.evaluation.test_production import answered

USERS = [user for user in range(30) for _ in range(8)]


def interval(differences: list[float], users: list[int] = USERS) -> Estimate:
    return no_surer_than_the_test(mean(differences, users), differences, users, bounded=True)


def rises(signs: list[int]) -> list[float]:
    """One reply in eight of as many users differs."""
    return [
        float(signs[user]) if user < len(signs) and place % 8 == 0 else 0.0
        for place, user in enumerate(USERS)
    ]


def test_four_new_refusals_of_four_users_are_no_warning_and_twelve_are() -> None:
    (rule,) = [r for r in load_rules(PROJECT / FILE).rules if r.metric == "evaluate.change.false_refusal.low"]
    rows = [replace(row, user_id=f"u{place // 8}") for place, row in enumerate(answered(["Aye."] * 240))]
    before = production.measure(rows)
    for count, outcome in ((4, "pass"), (5, "pass"), (12, "warn")):
        after = [
            values | {"false_refusal": refused}
            for values, refused in zip(before, rises([1] * count), strict=True)
        ]
        found = production.changes(rows, before, after)
        assert found["false_refusal"]["value"] == pytest.approx(count / 240)
        assert apply(rule, {"evaluate": {"change": found}}).outcome == outcome


@pytest.mark.parametrize("differing", range(1, 11))
def test_few_users_that_differ_by_chance_are_called_worse_in_at_most_one_of_forty_draws(
    differing: int,
) -> None:
    """All signs that as many users can have; a t interval alone is wrong more often."""
    drawn = [interval(rises(list(signs))) for signs in product((-1, 1), repeat=differing)]
    assert np.mean([found["low"] > 0 for found in drawn]) <= 0.025
    assert np.mean([found["high"] < 0 for found in drawn]) <= 0.025
    alone = [mean(rises(list(signs)), USERS)["low"] > 0 for signs in product((-1, 1), repeat=differing)]
    assert differing not in (4, 5) or np.mean(alone) > 0.025


@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_two_policies_of_one_rare_rate_are_rarely_told_apart(rate: float) -> None:
    rng = np.random.default_rng(1)
    drawn = [interval([float(a) - float(b) for a, b in rng.random((240, 2)) < rate]) for _ in range(400)]
    wrong = np.mean([found["low"] > 0 or found["high"] < 0 for found in drawn])
    assert wrong <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert all(
        found["low"] <= found["value"] <= found["high"] and found["low"] < found["high"] for found in drawn
    )


def test_a_clear_change_keeps_its_interval() -> None:
    differences = rises([1] * 15)
    assert interval(differences) == mean(differences, USERS)


def test_equal_replies_leave_open_what_so_many_users_could_have_missed() -> None:
    found = interval([0.0] * 240)
    assert found["high"] == share([0.0] * 240, USERS)["high"] == -found["low"] > 0.1
    words = no_surer_than_the_test(mean([0.0] * 240, USERS), [0.0] * 240, USERS, bounded=False)
    assert (words["value"], words["low"], words["high"], words["reason"]) == (0, None, None, NO_DIFFERENCE)


def test_a_rare_event_may_be_as_common_as_its_share_allows() -> None:
    found = interval(rises([1]))
    assert found["low"] < 0
    assert (
        found["high"]
        == share([abs(value) for value in rises([1])], USERS)["high"]
        > mean(rises([1]), USERS)["high"]
    )
    fewer = interval(rises([-1]))
    assert (fewer["low"], fewer["high"]) == (-found["high"], -found["low"])


def test_one_user_or_none_has_no_interval() -> None:
    assert interval([1.0, 0.0], [1, 1])["low"] is None
    assert interval([], [])["value"] is None
    assert sign_flip(user_totals([1.0, 2.0], ["u", "u"])) is None
    assert sign_flip(user_totals([1.0, 0.0], ["u", "v"])) == 1.0
