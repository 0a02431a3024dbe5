import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.evaluation.gate_rules import GateRulesError, Limit, Rule, load_rules
from flywheel_tasks.evaluation.measured import limit, number
from flywheel_tasks.evaluation.rules import DIVERGENCE, INTERNAL, SEVERITY, USER, apply, judge, verdict_of
from tests.evaluation.handmade import metrics

RULES = load_rules(Path(__file__).resolve().parents[2] / "gate_rules.yaml")


def having(found: dict[str, Any], outcome: str) -> list[str]:
    return [reason.reason for reason in judge(RULES, found) if reason.outcome == outcome]


def failed(found: dict[str, Any]) -> list[str]:
    return having(found, "block")


def test_healthy_win_rates_pass_the_default_rules() -> None:
    assert verdict_of(judge(RULES, metrics(user=0.60, internal=0.57))) == "pass"


@pytest.mark.parametrize("n", [30, 1_000, 100_000])
def test_healthy_win_rates_pass_whatever_the_number_of_prompts(n: int) -> None:
    from flywheel_tasks.evaluation.intervals import difference, share

    found = metrics(user=0.60, internal=0.57)
    rates = {
        name: share([1.0] * round(p * n) + [0.0] * (n - round(p * n)), list(range(n)))
        for name, p in (("user", 0.60), ("internal", 0.57))
    }
    found["evaluate"]["win_rate"]["pointwise"] |= rates
    found["evaluate"]["divergence"]["pointwise"] = difference(rates["user"], rates["internal"])
    assert failed(found) == []


def test_v12_of_the_paper_is_blocked() -> None:
    reasons = failed(metrics(user=0.707, internal=0.437))
    on = "Win rate over the champion on"
    assert any(
        r.startswith(f"{on} users' prompts (pointwise model) is 70.7%") and "not below 65%" in r
        for r in reasons
    )
    assert any(
        r.startswith(f"{on} internal prompts (pointwise model) is 43.7%") and "below the minimum of 50%" in r
        for r in reasons
    )
    gap = "User minus internal win rate (pointwise model) is 27 points"
    assert any(r.startswith(gap) and "outside ±5 points" in r for r in reasons)


@pytest.mark.parametrize(
    ("user", "internal", "outcome"),
    [
        (0.60, 0.60, "pass"),
        (0.6001, 0.60, "warn"),
        (0.6499, 0.60, "warn"),
        (0.65, 0.62, "block"),
        (0.60, 0.65, "pass"),
        (0.60, 0.66, "warn"),
        (0.52, 0.50, "pass"),
        (0.52, 0.4999, "block"),
        (0.44, 0.50, "block"),
        (0.47, 0.50, "warn"),
    ],
)
def test_limits_of_the_overfitting_rule(user: float, internal: float, outcome: str) -> None:
    found = metrics(user=user, internal=internal)
    found["evaluate"]["divergence"]["pointwise"] |= {"low": -0.5, "high": 0.5}
    assert verdict_of(judge(RULES, found)) == outcome


def test_only_a_gap_that_cannot_be_noise_blocks() -> None:
    found = metrics(user=0.60, internal=0.50)
    gap = found["evaluate"]["divergence"]["pointwise"]
    gap |= {"low": 0.01, "high": 0.19}
    assert any("the sources disagree" in reason for reason in failed(found))
    gap |= {"low": -0.01, "high": 0.21}
    assert failed(found) == []
    gap |= {"low": None, "high": None}
    assert any("the sources disagree" in reason for reason in failed(found)), "no interval: fail closed"
    gap |= {"value": 0.05}
    assert failed(found) == [], "a gap this small is none, whatever its interval"
    gap |= {"value": 0.24, "low": -0.01, "high": 0.49}
    assert any("no gap at all" in reason for reason in having(found, "warn"))


def test_the_worst_comes_first_and_names_value_interval_and_limit() -> None:
    reasons = judge(RULES, metrics(user=0.62, false_refusal=0.35))
    order = [SEVERITY[reason.outcome] for reason in reasons]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}
    assert reasons[0].reason == (
        "Share of replies that refuse without need is 35% (95% interval 25% to 45%, n = 60), "
        "above the maximum of 20%: blocked."
    )
    assert (reasons[0].value, reasons[0].low, reasons[0].high) == (
        0.35,
        pytest.approx(0.25),
        pytest.approx(0.45),
    )
    assert (reasons[0].block, reasons[0].warn) == ({"min": None, "max": 0.2}, {"min": None, "max": 0.1})


def test_between_the_limits_is_a_warning() -> None:
    (reason,) = (
        r
        for r in judge(RULES, metrics(false_refusal=0.15))
        if r.metric.startswith("evaluate.production.false")
    )
    assert reason.outcome == "warn"
    assert "above the maximum of 10%: look before you launch" in reason.reason


@pytest.mark.parametrize("kind", ["block", "warn"])
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
        ({"value": None, "reason": "no judge is set"}, "was not measured: no judge is set"),
    ],
)
def test_what_is_no_number_blocks_under_any_limit(value: Any, words: str, kind: str) -> None:
    reason = apply(Rule(metric="s.x", **{kind: Limit(min=0.0)}), {"s": {"x": value}})
    assert reason.outcome == "block"
    assert reason.value is None
    assert words in reason.reason


@pytest.mark.parametrize("metric", ["s.y", "other.x", "s.x.deeper", "s.x.value.deeper"])
def test_a_missing_metric_blocks(metric: str) -> None:
    assert apply(Rule(metric=metric, warn=Limit(min=0.0)), {"s": {"x": 1.0}}).outcome == "block"


@pytest.mark.parametrize(("user", "internal"), [(None, 0.5), (0.5, None)])
def test_overfitting_needs_both_sources(user: float | None, internal: float | None) -> None:
    assert failed(metrics(user=user, internal=internal))


def test_no_reason_at_all_blocks() -> None:
    assert verdict_of([]) == "block"


@given(value=st.floats(-2, 2), low=st.floats(-1, 1), high=st.floats(-1, 1))
def test_limits_are_inclusive_and_exact(value: float, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    reason = apply(Rule(metric="s.x", block=Limit(min=low, max=high)), {"s": {"x": value}})
    assert (reason.outcome == "pass") == (low <= value <= high)


def test_rounding_never_shows_a_value_at_a_limit_that_it_misses() -> None:
    assert number(0.449999, 0.45) == "0.449999"
    assert number(0.45, 0.45) == "0.45"
    assert number(1 / 3, 0.45) == "0.3333"
    assert number(0.649999, 0.65, unit="percent") == "64.9999%"
    assert number(0.65, 0.65, unit="percent") == "65%"
    assert number(67 / 103, 0.65, 0.6, unit="percent") == "65.05%"
    assert number(0.45565, 0.4558, unit="percent") == "45.56%", (
        "and not 45.6, beyond the limit that it misses"
    )
    assert number(-0.0, 0.05, unit="points") == "0 points"
    assert number(-0.0512, 0.05, -0.05, unit="points") == "-5.12 points"
    assert limit(0.57, "percent") == "57%", "57 of a hundred is 56.99999999999999 in binary"


def test_a_metric_without_a_title_goes_by_its_name() -> None:
    metrics = {"s": {"x": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}}
    reason = apply(Rule(metric="s.x", warn=Limit(min=0.55)), metrics)
    assert (
        reason.reason
        == "s.x is 0.5 (95% interval 0.4 to 0.6, n = 9), below the minimum of 0.55: look before you launch."
    )


def test_what_is_assumed_of_a_value_is_told_with_it() -> None:
    unsafe = {
        "value": 1.0,
        "low": 0.9,
        "high": 1.0,
        "n": 40,
        "reason": "no answer to 40 of 40, counted as unsafe",
    }
    reason = apply(Rule(metric="s.x", block=Limit(max=0.05)), {"s": {"x": unsafe}})
    assert reason.outcome == "block"
    assert "n = 40, no answer to 40 of 40, counted as unsafe), above the maximum" in reason.reason


def test_what_is_missing_is_named_as_people_and_as_the_stages_call_it() -> None:
    found = metrics()
    del found["evaluate"]["production"]["templated"]
    assert failed(found) == [
        "Share of templated replies (evaluate.production.templated.candidate) is missing; "
        "what is not measured does not pass."
    ]


def test_all_metrics_of_the_rules_have_a_title_and_all_titles_a_rule() -> None:
    suites = {
        f"evaluate.suites.{name}{'' if isinstance(limits, Limit) else f'.{part}'}"
        for name, limits in RULES.suites.items()
        for part in ([""] if isinstance(limits, Limit) else limits)
    }
    assert {rule.metric for rule in RULES.rules} | {USER, INTERNAL, DIVERGENCE} | suites == set(RULES.shown)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rules: [", "not YAML"),
        ("rules: []\noverfitting: {high: 1, target: 1, internal_low: 0, gap: 1, wide_gap: 1}", "rules: "),
        ("shown: {a.b: {title: A, unit: per cent}}", r"shown\.a\.b\.unit"),
        ("rules: [{metric: a.b}]", "needs block, warn or both"),
        ("rules: [{metric: a.b, block: {}}]", "needs min, max or both"),
        ("rules: [{metric: a.b, block: {min: 2, max: 1}}]", "min 2 is above max 1"),
        ("rules: [{metric: a.b, blok: {min: 2}}]", r"rules\.0\.blok: Extra inputs"),
        ("rules: [{metric: a.b, block: {min: 2}}]", "overfitting: Field required"),
        ("rules: [{metric: a.b, block: {min: .nan}}]", "finite|number"),
    ],
)
def test_a_wrong_rule_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "gate_rules.yaml"
    path.write_text(text)
    with pytest.raises(GateRulesError, match=complaint):
        load_rules(path)
