"""What is tolerated of a candidate is tested, not compared: tests of six days, looked at on each, simulated."""

import math
import re

import numpy as np
import pytest

from flywheel_tasks.online.analysis import analyse_population
from flywheel_tasks.online.decision import harms
from flywheel_tasks.online.guardrails import look_document
from flywheel_tasks.online.metrics import METRICS, one_arm
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.experiment_records import Plan, Rule
from tests.conftest import PROJECT
from tests.online.people import columns, drawn, make_plan, population, sums_of

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


def slow_arm(slower: float, seed: int) -> list[str]:
    """The harms found in 600 users, each with a latency of their own, whose candidate takes so many times as long."""
    generator, n = np.random.default_rng(seed), 600
    is_candidate = np.arange(n) % 2 == 1
    replies = generator.poisson(6, n)
    each = generator.lognormal(6.5, 0.5, n) * np.where(is_candidate, slower, 1.0)
    total = np.round(generator.gamma(4 * np.maximum(replies, 1), each / 4)).astype(np.int64) * (replies > 0)
    users = columns(n, messages=replies, replies=replies, timed_replies=replies, milliseconds=total)
    arms = {"control": sums_of(users, ~is_candidate), "candidate": sums_of(users, is_candidate)}
    return harms(arms, Rule(primary=("depth",), guardrails=("latency_ms",), planned_users=n))[1]


def test_a_latency_that_is_tolerated_harms_nobody_and_a_longer_one_does() -> None:
    assert sum(slow_arm(1.099, seed) != [] for seed in range(60)) <= RULE.guardrail_alpha * 60
    for seed in range(10):
        (sentence,) = slow_arm(2.0, seed)
        assert re.match(
            r"Latency of a reply \(ms\): worse by \+\d+\.\d%: \d+, up to \d+ is tolerated", sentence
        )
    assert slow_arm(0.5, 1) == []


def test_a_candidate_that_takes_twenty_times_as_long_is_rejected() -> None:
    arm, users = drawn(np.random.default_rng(3), 4_000, lift=0.4)
    slow = {"milliseconds": np.where(arm == "candidate", 20, 1) * users["milliseconds"]}
    shipped = load_settings(PROJECT / "params.yaml").ab.rule
    # The drawn users' fallbacks are of both arms, and more than are tolerated.
    plan = make_plan(rule=shipped.model_copy(update={"planned_users": 4_000, "tolerated_fallback": 0.1}))
    good = population(arm, users)
    assert analyse_population(plan, good, simulated=False)["advice"] == "promote"
    bad = population(arm, users, changes=slow)
    found = analyse_population(plan, bad, simulated=False)
    assert (found["result"], found["advice"]) == ("valid", "reject")
    assert "Latency of a reply (ms): worse by +" in found["advice_reasons"][0]
    assert look_document(plan, bad)["result"] == "stop"


def test_a_test_that_runs_keeps_the_rule_that_it_had() -> None:
    """It was started when any longer latency was harm, where its rule had that guardrail at all."""
    document = make_plan().model_dump(mode="json")
    assert Plan.model_validate(document).rule.tolerated_latency_percent == 10
    del document["rule"]["tolerated_latency_percent"]
    assert Plan.model_validate(document).rule.tolerated_latency_percent == 0


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
