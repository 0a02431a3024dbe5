import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.evaluation.rules import apply, judge, number
from flywheel_tasks.settings import GateRule, load_settings
from tests.evaluation.handmade import metrics

GATE = load_settings(Path(__file__).resolve().parents[2] / "params.yaml").gate


def failed(found: dict[str, Any]) -> list[str]:
    return [reason.reason for reason in judge(GATE, found) if not reason.passed]


def test_healthy_win_rates_pass_the_default_rules() -> None:
    assert failed(metrics(user=0.60, internal=0.57)) == []


def test_v12_of_the_paper_is_blocked() -> None:
    reasons = failed(metrics(user=0.707, internal=0.437))
    assert any("pointwise.user is 0.707" in r and "not below 0.65" in r for r in reasons)
    assert any("internal is 0.437" in r and "better for users only" in r for r in reasons)
    assert any("divergence.pointwise (user minus internal) is 0.27" in r for r in reasons)


@pytest.mark.parametrize(
    ("user", "internal", "blocked"),
    [(0.6499, 0.60, False), (0.65, 0.60, True), (0.60, 0.65, True), (0.62, 0.48, True), (0.58, 0.48, False)],
)
def test_limits_of_the_overfitting_rule(user: float, internal: float, blocked: bool) -> None:
    assert bool(failed(metrics(user=user, internal=internal))) == blocked


def test_a_gap_that_may_be_noise_does_not_block() -> None:
    found = metrics(user=0.64, internal=0.41)
    gap = found["evaluate"]["divergence"]["pointwise"]
    assert any("the sources disagree" in reason for reason in failed(found))
    gap |= {"low": -0.05, "high": 0.51}
    assert not any("divergence" in reason for reason in failed(found))
    gap |= {"low": None, "high": None}
    assert any("the sources disagree" in reason for reason in failed(found)), "no interval: fail closed"


def test_failures_come_first_and_name_value_interval_and_limit() -> None:
    reasons = judge(GATE, metrics(false_refusal=0.35))
    assert [reason.passed for reason in reasons] == sorted(reason.passed for reason in reasons)
    assert reasons[0].reason == (
        "evaluate.production.false_refusal.candidate is 0.35 (95% interval 0.25 to 0.45, n = 60), "
        "above the maximum of 0.2."
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is null"),
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
        ("0.6", "is not a number but str"),
        (True, "is not a number but bool"),
        ([0.6], "is not a number but list"),
        ({"low": 0.5}, "is a group of metrics"),
        ({"value": None, "low": None, "high": None}, "is null"),
    ],
)
def test_what_is_no_number_fails(value: Any, words: str) -> None:
    reason = apply(GateRule(metric="s.x", min=0.0), {"s": {"x": value}})
    assert not reason.passed
    assert reason.value is None
    assert words in reason.reason


@pytest.mark.parametrize("metric", ["s.y", "other.x", "s.x.deeper", "s"])
def test_a_missing_metric_fails(metric: str) -> None:
    assert not apply(GateRule(metric=metric, min=0.0), {"s": {"x": 1.0}}).passed


@pytest.mark.parametrize(("user", "internal"), [(None, 0.5), (0.5, None)])
def test_overfitting_needs_both_sources(user: float | None, internal: float | None) -> None:
    assert failed(metrics(user=user, internal=internal))


@given(value=st.floats(-2, 2), low=st.floats(-1, 1), high=st.floats(-1, 1))
def test_limits_are_inclusive_and_exact(value: float, low: float, high: float) -> None:
    reason = apply(GateRule(metric="s.x", min=low, max=high), {"s": {"x": value}})
    assert reason.passed == (low <= value <= high)


def test_rounding_never_shows_a_value_at_a_limit_that_it_misses() -> None:
    assert number(0.449999, 0.45) == "0.449999"
    assert number(0.45, 0.45) == "0.45"
    assert number(1 / 3, 0.45) == "0.3333"
