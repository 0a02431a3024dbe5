"""A reduced calibration; the whole is benchmarks/experiments_calibration.py, its figures are in docs/experiments.md.

Limits are those that a right procedure breaks once in a thousand runs per row (binomial); the seeds are fixed.
"""

import pytest
from scipy.stats import binom

from benchmarks.experiments_calibration import ALPHA, LOOKED_AT, null_tests, power_of, ratio_alarms
from flywheel_tasks.online.metrics import METRICS

TESTS = 40
ONE_IN_A_THOUSAND = 0.001


@pytest.fixture(scope="module")
def said():
    return null_tests(TESTS, seed=11)


@pytest.mark.parametrize("estimate", ["raw", "cuped"])
@pytest.mark.parametrize("name", list(METRICS))
def test_errors_and_coverage_are_nominal(said, name: str, estimate: str) -> None:
    if estimate == "cuped" and METRICS[name].covariate is None:
        pytest.skip("no covariate")
    low, high = binom.ppf([ONE_IN_A_THOUSAND / 2, 1 - ONE_IN_A_THOUSAND / 2], TESTS, ALPHA)
    assert low <= said[name, estimate, "positive"] <= high
    assert low <= TESTS - said[name, estimate, "covered"] <= high


@pytest.mark.parametrize("estimate", ["raw", "cuped"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_daily_looks_are_honest(said, name: str, estimate: str) -> None:
    assert said[name, estimate, "alarmed"] <= TESTS * ALPHA
    assert said[name, estimate, "peeked"] > said[name, estimate, "alarmed"]


def test_power_is_what_the_plan_says() -> None:
    users, power, covered = power_of("depth", "cuped", lift=0.3, power=0.8, tests=100, seed=5)
    assert 300 < users < 3_000
    assert binom.ppf(ONE_IN_A_THOUSAND / 2, 100, 0.8) <= 100 * power <= binom.ppf(0.9995, 100, 0.8)
    assert 100 * covered >= binom.ppf(ONE_IN_A_THOUSAND, 100, 0.95)


def test_an_imbalance_of_one_percent_among_a_million_is_found() -> None:
    assert ratio_alarms(1_000_000, 0.505, 200, seed=1) == 1.0
    assert ratio_alarms(1_000_000, 0.5, 2_000, seed=2) <= 0.005
