import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from flywheel_tasks.evaluation.intervals import _wilson, difference, mean, share


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (3, 10), (10, 10), (57, 96)])
def test_share_of_independent_rows_is_wilsons(wins: int, n: int) -> None:
    found = share([1.0] * wins + [0.0] * (n - wins), list(range(n)))
    expected = stats.binomtest(wins, n).proportion_ci(method="wilson")
    # n/(n-1) of the cluster variance makes the design effect a little more than 1
    assert found["value"] == wins / n
    assert found["low"] == pytest.approx(expected.low, abs=0.02)
    assert found["high"] == pytest.approx(expected.high, abs=0.02)
    assert found["low"] <= expected.low + 1e-12


def test_rows_of_one_user_count_less() -> None:
    values = [1.0] * 30 + [0.0] * 30
    alone = share(values, list(range(60)))
    by_user = share(values, [i // 10 for i in range(60)])  # six users, each all wins or all losses
    assert by_user["high"] - by_user["low"] > 2 * (alone["high"] - alone["low"])
    assert by_user["clusters"] == 6


def test_interval_covers_the_truth_with_clusters() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        rates = rng.beta(3, 2, size=25)  # users differ; their mean is 0.6
        rows = [(float(rng.random() < rate), user) for user, rate in enumerate(rates) for _ in range(4)]
        found = share([value for value, _ in rows], [user for _, user in rows])
        covered += found["low"] <= 0.6 <= found["high"]
    assert covered / 300 > 0.92


def test_an_interval_from_few_users_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        rates = rng.beta(4.5, 4.5, size=4)  # four users whose rates differ: an intraclass correlation of 0.1
        values = [float(rng.random() < rate) for rate in rates for _ in range(15)]
        found = share(values, [user for user in range(4) for _ in range(15)])
        covered += found["low"] <= 0.5 <= found["high"]
    assert covered / 400 > 0.93


def test_nothing_measured_is_null_and_bad_values_are_errors() -> None:
    assert share([], [])["value"] is None
    assert mean([], [])["value"] is None
    with pytest.raises(ValueError, match="value 1 is not a finite number"):
        share([0.5, float("nan")], [1, 2])
    with pytest.raises(ValueError, match="between 0 and 1"):
        share([2.0], [1])
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        mean([1.0, 2.0], [1])


def test_mean_of_independent_rows_is_students() -> None:
    values = [3.0, 5.0, 4.0, 8.0, 1.0]
    found = mean(values, list(range(5)))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert mean(values, [1] * 5)["low"] is None  # one user: nothing to estimate from


def test_difference_is_newcombes() -> None:
    # Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339
    first = {"value": 0.8, "low": 0.6918, "high": 0.8776, "n": 70, "clusters": 70}
    second = {"value": 0.6, "low": 0.4904, "high": 0.7002, "n": 80, "clusters": 80}
    found = difference(first, second)
    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(0.0524, abs=1e-3), pytest.approx(0.3339, abs=1e-3))
    assert difference({**first, "value": None}, second)["value"] is None


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (3, 10), (10, 10), (57, 96)])
def test_the_wilson_interval_is_statsmodels(wins: int, n: int) -> None:
    low, high = proportion_confint(wins, n, method="wilson")
    assert _wilson(wins / n, n) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_a_mean_is_statsmodels_cluster_robust_one() -> None:
    rng = np.random.default_rng(4)
    clusters = rng.integers(0, 12, 80)
    values = rng.normal(size=80) + rng.normal(size=12)[clusters]
    fit = OLS(values, np.ones(80)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    found = mean(list(values), list(clusters))
    low, high = fit.conf_int()[0]
    assert found["value"] == pytest.approx(fit.params[0])
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
