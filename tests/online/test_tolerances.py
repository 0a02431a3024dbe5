"""What is tolerated of a candidate is tested, not compared: tests of six days, looked at on each, simulated."""

import math

import numpy as np
import pytest

from flywheel_tasks.online.decision import harms
from flywheel_tasks.online.metrics import METRICS, one_arm
from flywheel_tasks.storage.experiment_records import Rule
from tests.online.people import columns, sums_of

DAYS, USERS, TESTS = 6, 300, 40
RULE = Rule(primary=("depth",), guardrails=("fallback_per_reply",), planned_users=DAYS * USERS)


def stopped_by_fallbacks(share: float, seed: int) -> bool:
    """Whether any daily look stops a candidate with this true share; users differ, and new ones come every day."""
    generator, n = np.random.default_rng(seed), DAYS * USERS
    is_candidate, first = np.arange(n) % 2 == 1, np.repeat(np.arange(DAYS), USERS)
    taste, prone = generator.gamma(0.7, 1.4, n), generator.gamma(1.5, 1 / 1.5, n)
    replies, fallbacks = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for day in range(DAYS):
        there = first <= day
        new = np.where(there, generator.poisson(4 * taste), 0)
        replies += new
        fallbacks += np.where(is_candidate, generator.binomial(new, np.minimum(1, share * prone)), 0)
        users = columns(n, messages=replies, replies=replies, fallback=fallbacks)
        arms = {"control": there & ~is_candidate, "candidate": there & is_candidate}
        _, found = harms({name: sums_of(users, rows) for name, rows in arms.items()}, RULE)
        if any(sentence.startswith("Fallbacks") for sentence in found):
            return True
    return False


@pytest.mark.parametrize("share", [0.008, 0.0099])
def test_a_share_of_fallbacks_that_is_tolerated_stops_no_test(share: float) -> None:
    stopped = sum(stopped_by_fallbacks(share, seed) for seed in range(TESTS))
    assert stopped <= RULE.guardrail_alpha * TESTS


def test_more_fallbacks_than_are_tolerated_stop_every_test() -> None:
    assert all(stopped_by_fallbacks(0.03, seed) for seed in range(5))


def fallen_back(every: int) -> dict:
    """Sums of two arms of 200 users with 10 replies each; the champion gave all of them to some of the candidate's."""
    users = columns(400, messages=np.arange(400) % 7, replies=np.full(400, 10))
    number = np.arange(400)
    users["fallback"] = np.where((number >= 200) & (number % every == 0), 10, 0)
    return {"control": sums_of(users, number < 200), "candidate": sums_of(users, number >= 200)}


def test_share_and_tolerance_are_said() -> None:
    view, (sentence,) = harms(fallen_back(4), RULE)
    assert sentence.startswith(
        "Fallbacks to the champion per reply: worse than none: 25.00%, up to 1.00% is tolerated (always-valid p ="
    )
    found = view["fallback_per_reply"]
    assert (found["candidate"], found["tolerated"]) == (0.25, 0.01)
    assert found["pvalue"] < RULE.guardrail_alpha / 2


def test_where_every_reply_is_a_fallback_there_is_no_doubt() -> None:
    view, (sentence,) = harms(fallen_back(1), RULE)
    assert "worse than none: 100.00%" in sentence
    assert (view["fallback_per_reply"]["pvalue"], view["fallback_per_reply"]["z"]) == (0.0, None)


def test_no_fallback_is_no_harm() -> None:
    view, found = harms(fallen_back(1_000), RULE)
    assert (found, view["fallback_per_reply"]["pvalue"]) == ([], 1.0)


def test_an_arm_has_the_standard_error_of_the_delta_method() -> None:
    generator = np.random.default_rng(3)
    replies = 1 + generator.poisson(5, 500)
    fallbacks = generator.binomial(replies, 0.2)
    sums = sums_of(columns(500, replies=replies, fallback=fallbacks), np.ones(500, dtype=bool))
    value, error = one_arm(METRICS["fallback_per_reply"], sums)
    ratio = fallbacks.mean() / replies.mean()
    expected = math.sqrt(np.var(fallbacks - ratio * replies, ddof=1) / 500) / replies.mean()
    assert value == pytest.approx(ratio, rel=1e-12)
    assert error == pytest.approx(expected, rel=1e-9)
