import math
from pathlib import Path

import pytest

from flywheel_tasks.evaluation.gate_rules import load_rules
from flywheel_tasks.evaluation.rules import DIVERGENCE, INTERNAL, overfitting
from flywheel_tasks.evaluation.win_rate import (
    agreement,
    divergence,
    pairwise_score,
    pointwise_score,
    win_rates,
)
from tests.evaluation.handmade import metrics


def test_ties_and_identical_replies_are_half() -> None:
    assert pointwise_score(1.0, 1.0, identical=False) == 0.5
    assert pointwise_score(1.0, 0.5, identical=True) == 0.5
    assert (pointwise_score(1.0, 0.5, identical=False), pointwise_score(0.4, 0.5, identical=False)) == (1, 0)
    assert pairwise_score(0.5, identical=False) == 0.5
    assert pairwise_score(0.9, identical=True) == 0.5
    assert (pairwise_score(0.51, identical=False), pairwise_score(0.49, identical=False)) == (1, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_number_never_counts(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        pointwise_score(bad, 0.0, identical=False)
    with pytest.raises(ValueError, match="between 0 and 1"):
        pairwise_score(bad, identical=True)


def test_rates_by_source() -> None:
    rates = win_rates([1, 0.5, 0, 1], ["user", "user", "internal", "internal"], ["a", "b", "c", "d"])
    assert [rates[name]["value"] for name in ("user", "internal", "all")] == [0.75, 0.5, 0.625]
    assert [rates[name]["n"] for name in ("user", "internal", "all")] == [2, 2, 4]
    assert divergence(rates)["value"] == 0.25


def test_a_source_without_prompts_is_null() -> None:
    rates = win_rates([1, 0], ["user", "user"], ["a", "b"])
    assert rates["internal"]["value"] is None
    assert divergence(rates)["value"] is None
    why = "no internal prompts in the evaluation split"
    assert (rates["internal"]["reason"], divergence(rates)["reason"]) == (why, why)
    assert "reason" not in rates["user"]


def test_the_gate_says_why_a_source_has_no_win_rate() -> None:
    rates = win_rates([1, 0], ["user", "user"], ["a", "b"])
    found = metrics()
    found["evaluate"]["win_rate"]["pointwise"] = rates
    found["evaluate"]["divergence"]["pointwise"] = divergence(rates)
    rules = load_rules(Path(__file__).resolve().parents[2] / "gate_rules.yaml")
    blocked = {reason.metric: reason.reason for reason in overfitting(rules, found)}
    for metric in (INTERNAL, DIVERGENCE):
        assert "was not measured: no internal prompts in the evaluation split" in blocked[metric]


def test_agreement_leaves_ties_out() -> None:
    found = agreement([1, 0, 0.5, 1], [1, 1, 1, 0.5], ["a", "b", "c", "d"])
    assert (found["value"], found["n"]) == (0.5, 2)
