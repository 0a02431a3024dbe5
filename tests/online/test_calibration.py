"""A reduced calibration; the whole is benchmarks/experiments_calibration.py, its figures are in docs/experiments.md.

Limits are those that a right procedure breaks once in a thousand runs per row (binomial); the seeds are fixed.
"""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.experiments_calibration import (
    ALPHA,
    LOOKED_AT,
    ended_tests,
    null_tests,
    people,
    power_of,
    ratio_alarms,
)
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


@pytest.mark.parametrize(("name", "lift"), [("depth", 0.3), ("breadth", 0.2)])
@pytest.mark.parametrize("estimate", ["raw", "cuped"])
def test_power_is_what_the_plan_says(name: str, lift: float, estimate: str) -> None:
    tests = 300
    users, power, covered = power_of(name, estimate, lift=lift, power=0.8, tests=tests, seed=5)
    assert 300 < users < 3_000
    low, high = binom.ppf([ONE_IN_A_THOUSAND / 2, 1 - ONE_IN_A_THOUSAND / 2], tests, 0.8)
    assert low <= tests * power <= high
    assert tests * covered >= binom.ppf(ONE_IN_A_THOUSAND, tests, 0.95)


@pytest.mark.parametrize("name", ["depth", "breadth"])
def test_the_lift_of_the_simulation_is_the_planned_one(name: str) -> None:
    generator = np.random.default_rng(3)
    arm = generator.random((1, 1_000_000)) < 0.5
    column = people(generator, arm, name, 0.2)["messages" if name == "depth" else "active"]
    assert column[arm].mean() / column[~arm].mean() == pytest.approx(1.2, abs=0.015)


def test_many_tests_at_once_are_judged_as_one_by_one() -> None:
    said = ended_tests(30, seed=4)
    assert {said[name, "raw", "tests"] for name in METRICS} == {30}
    for name in METRICS:
        assert said[name, "raw", "positive"] + said[name, "raw", "covered"] in range(28, 33)


def test_an_imbalance_of_one_percent_among_a_million_is_found() -> None:
    assert ratio_alarms(1_000_000, 0.505, 200, seed=1) == 1.0
    assert ratio_alarms(1_000_000, 0.5, 2_000, seed=2) <= 0.005
