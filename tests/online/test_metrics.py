"""Figures of the analysis against scipy, statsmodels and formulas written out in numpy."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
import tea_tasting as tt
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from flywheel_tasks.online.analysis import arm_sums
from flywheel_tasks.online.decision import adjusted, harms
from flywheel_tasks.online.metrics import METRICS, absent, compare, figures, pairs
from flywheel_tasks.online.sums import sums_by
from flywheel_tasks.settings import AB_METRICS
from tests.online.people import RULE, columns, drawn, population, sums_of

EXACT = 1e-9


@pytest.fixture(scope="module")
def users() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return drawn(np.random.default_rng(5), 3_000, lift=0.1)


@pytest.fixture(scope="module")
def arms(users):
    arm, found = users
    return {name: sums_of(found, arm == name) for name in ("control", "candidate")}


def test_metrics_are_those_that_settings_know() -> None:
    assert tuple(METRICS) == AB_METRICS


def test_sums_in_the_database_are_those_of_numpy(users, arms) -> None:
    arm, found = users
    assert arm_sums(population(arm, found)) == arms


def test_sums_are_exact_where_floats_are_not() -> None:
    # Squares near 2^62: floats of 53 bits lose the variance of 1 entirely.
    values = np.array([2**31 - 1, 2**31 - 2, 2**31 - 3], dtype=np.int64)
    import ibis
    import pyarrow as pa

    table = ibis.memtable(pa.table({"g": ["a"] * 3, "x": values}))
    (sums,) = sums_by(table, ["g"], [("x", "x")]).values()
    assert sums.aggregates().var("x") == 1.0
    assert sums.aggregates().mean("x") == 2**31 - 2


@pytest.mark.parametrize("name", ["breadth", "active_days", "depth"])
def test_means_agree_with_scipy_and_statsmodels(users, arms, name: str) -> None:
    arm, found = users
    column = found[METRICS[name].numer]
    one, other = column[arm == "candidate"], column[arm == "control"]
    result = compare(METRICS[name], arms, "raw", 0.05)
    welch = stats.ttest_ind(one, other, equal_var=False)
    assert result.pvalue == pytest.approx(welch.pvalue, rel=EXACT)
    assert result.statistic == pytest.approx(welch.statistic, rel=EXACT)
    means = CompareMeans(DescrStatsW(one), DescrStatsW(other))
    low, high = means.tconfint_diff(0.05, usevar="unequal")
    assert result.effect_size_ci_lower == pytest.approx(low, rel=EXACT)
    assert result.effect_size_ci_upper == pytest.approx(high, rel=EXACT)
    assert means.ttest_ind(usevar="unequal")[1] == pytest.approx(result.pvalue, rel=EXACT)


@pytest.mark.parametrize("estimate", ["raw", "cuped"])
@pytest.mark.parametrize("name", list(METRICS))
def test_aggregated_figures_are_those_of_tea_tasting_on_rows(users, arms, name: str, estimate: str) -> None:
    import pyarrow as pa

    arm, found = users
    rows = pa.table({"arm": arm, **found})
    metric = METRICS[name].of(estimate, confidence_level=0.95)
    on_rows = tt.Experiment({"m": metric}, variant="arm").analyze(rows, control="control")["m"]
    for field, value in compare(METRICS[name], arms, estimate, 0.05)._asdict().items():
        assert value == pytest.approx(getattr(on_rows, field), rel=EXACT, abs=EXACT), field


def test_cuped_is_the_regression_on_the_covariate(users, arms) -> None:
    # With one covariate the CUPED coefficient is that of a regression on it, over both arms (Deng et al. 2013).
    arm, found = users
    slope = sm.OLS(found["messages"], sm.add_constant(found["pre_messages"])).fit().params[1]
    adjusted_ = found["messages"] - slope * (found["pre_messages"] - found["pre_messages"].mean())
    result = compare(METRICS["depth"], arms, "cuped", 0.05)
    welch = stats.ttest_ind(adjusted_[arm == "candidate"], adjusted_[arm == "control"], equal_var=False)
    assert result.pvalue == pytest.approx(welch.pvalue, rel=1e-8)
    assert result.control == pytest.approx(adjusted_[arm == "control"].mean(), rel=EXACT)
    raw = compare(METRICS["depth"], arms, "raw", 0.05)
    assert result.effect_size_ci_upper - result.effect_size_ci_lower < 0.9 * (
        raw.effect_size_ci_upper - raw.effect_size_ci_lower
    )


def test_a_ratio_has_the_variance_of_the_delta_method(users, arms) -> None:
    arm, found = users
    result = compare(METRICS["thumb_down_per_reply"], arms, "raw", 0.05)
    variance = 0.0
    for name in ("control", "candidate"):
        x, y = found["thumb_down"][arm == name], found["replies"][arm == name]
        ratio = x.mean() / y.mean()
        variance += np.var(x - ratio * y, ddof=1) / y.mean() ** 2 / len(x)
    assert result.effect_size / result.statistic == pytest.approx(math.sqrt(variance), rel=EXACT)


def test_holm_agrees_with_statsmodels(users, arms) -> None:
    from statsmodels.stats.multitest import multipletests

    results = {name: compare(metric, arms, "raw", 0.05) for name, metric in METRICS.items()}
    found = adjusted({"x": tt.experiment.ExperimentResult(results)}, 0.05)
    known = multipletests([result.pvalue for result in results.values()], method="holm")[1]
    assert [found["x", name] for name in results] == pytest.approx(list(known), rel=EXACT)


def test_a_metric_that_the_logs_lack_says_so(users) -> None:
    arm, found = users
    gone = found | {
        name: np.zeros(len(arm), dtype=np.int64) for name in ("timed_replies", "milliseconds", "report")
    }
    sums = {name: sums_of(gone, arm == name) for name in ("control", "candidate")}
    assert absent(METRICS["latency_ms"], sums) == "no timed_replies in the logs"
    assert absent(METRICS["report_per_reply"], sums) == "no report in the logs"
    report = figures(METRICS["report_per_reply"], sums, RULE)
    assert report["lift_percent"]["value"] is None
    assert report["absent"] == "no report in the logs"


@pytest.mark.parametrize("times", [1, 7])
def test_an_arm_whose_every_reply_is_refused_is_harmed(users, times: int) -> None:
    """Then nothing spreads, and there is no p-value; with three in seven floats take the variance for negative."""
    arm, found = users
    refused = found["replies"] * (1 if times == 1 else 3)
    total = found | {
        "replies": found["replies"] * times,
        "safety_violation": np.where(arm == "candidate", refused, 0),
    }
    sums = {name: sums_of(total, arm == name) for name in ("control", "candidate")}
    rule = RULE.model_copy(update={"guardrails": ("safety_violation_per_reply",), "estimate": "raw"})
    view, harm = harms(sums, rule)
    assert harm[0].startswith("Safety violations per reply: worse than none (always-valid p = 0 <")
    assert view["safety_violation_per_reply"]["pvalue"] == 0
    few = {name: sums_of(total, np.flatnonzero(arm == name)[:3]) for name in ("control", "candidate")}
    assert harms(few, rule)[1] == []


def test_without_a_past_there_is_no_cuped(users) -> None:
    arm, found = users
    new = found | {name: np.zeros(len(arm), dtype=np.int64) for name in found if name.startswith("pre_")}
    sums = {name: sums_of(new, arm == name) for name in ("control", "candidate")}
    shown = figures(METRICS["depth"], sums, RULE)
    assert shown["cuped"] is None
    assert shown["lift_percent"]["low"] < shown["lift_percent"]["high"]


@pytest.mark.parametrize("with_past", [(), ("candidate",), ("control", "candidate")])
def test_harm_is_seen_whoever_has_a_past(users, with_past: tuple[str, ...]) -> None:
    """A past of nobody in one arm makes a ratio to nothing of it: then the raw figures decide."""
    arm, found = users
    new = found | {name: np.zeros(len(arm), dtype=np.int64) for name in found if name.startswith("pre_")}
    for one in with_past:
        user = np.flatnonzero(arm == one)[0]
        new["pre_replies"][user], new["pre_thumb_down"][user] = 4, 1
    new["replies"] = np.full(len(arm), 5)
    new["thumb_down"] = np.where(arm == "candidate", 2, np.arange(len(arm)) % 2)
    sums = {name: sums_of(new, arm == name) for name in ("control", "candidate")}
    rule = RULE.model_copy(update={"guardrails": ("thumb_down_per_reply",), "estimate": "cuped"})
    view, harm = harms(sums, rule)
    assert harm[0].startswith("Thumbs down per reply: worse by")
    assert view["thumb_down_per_reply"]["pvalue"] < 1e-6
    assert (figures(METRICS["thumb_down_per_reply"], sums, rule)["cuped"] is None) == (len(with_past) < 2)


@pytest.mark.parametrize("planned", [10_000, 10_000_000])
def test_a_mean_next_to_zero_has_a_ratio_without_bounds_and_stops_no_look(planned: int) -> None:
    """No report in one arm yet: what CUPED leaves of it is nearly zero, and the interval of the ratio overflowed."""
    arm = np.repeat(["control", "candidate"], 300)
    counts = columns(600, replies=np.full(600, 10), pre_replies=np.full(600, 10))
    counts["report"][[300, 301]] = 1
    counts["pre_report"][[0, 1, 2, 400, 401, 402]] = 1
    sums = {name: sums_of(counts, arm == name) for name in ("control", "candidate")}
    rule = RULE.model_copy(
        update={"guardrails": ("report_per_reply",), "estimate": "cuped", "planned_users": planned}
    )
    view, harm = harms(sums, rule)
    assert harm == []
    assert 0 < view["report_per_reply"]["pvalue"] <= 1
    shown = figures(METRICS["report_per_reply"], sums, rule)
    for found in (shown, shown["cuped"]):
        assert 0 < found["pvalue"] <= 1
        assert found["sequential"]["high"] is None or found["sequential"]["high"] > 100


def test_every_needed_product_is_there() -> None:
    found = pairs()
    for metric in METRICS.values():
        assert {tuple(sorted(pair)) for pair in metric.of("cuped").aggr_cols.cov_cols} <= found
