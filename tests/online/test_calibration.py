"""A reduced calibration; the whole is benchmarks/experiments_calibration.py, its figures are in docs/experiments.md.

Limits are those that a right procedure breaks once in a thousand runs per row (binomial); the seeds are fixed.
"""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.experiments_calibration import (
    ALPHA,
    LOOKED_AT,
    ROWS,
    ended_tests,
    null_tests,
    people,
    power_of,
    ratio_alarms,
    stream,
)
from benchmarks.many_tests import arms_of_tests, compare_many, sums_of_tests
from flywheel_tasks.online.metrics import ESTIMATES, compare, pairs
from tests.online.people import sums_of

NAMES = [(metric.name, estimate) for metric, estimate in ROWS]
LOOKED = 40
ENDED = 400
ONE_IN_A_THOUSAND = 0.001


def limits(tests: int, share: float) -> tuple[float, float]:
    low, high = binom.ppf([ONE_IN_A_THOUSAND / 2, 1 - ONE_IN_A_THOUSAND / 2], tests, share)
    return float(low), float(high)


@pytest.fixture(scope="module")
def ended():
    return ended_tests(ENDED, seed=4)


@pytest.fixture(scope="module")
def looked():
    return null_tests(LOOKED, seed=11, looks_only=True)


@pytest.mark.parametrize(("name", "estimate"), NAMES)
def test_errors_and_coverage_are_nominal(ended, name: str, estimate: str) -> None:
    low, high = limits(ENDED, ALPHA)
    assert (low, high) == (7, 36)
    assert ended[name, estimate, "tests"] == ENDED
    assert low <= ended[name, estimate, "positive"] <= high
    assert low <= ENDED - ended[name, estimate, "covered"] <= high


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_daily_looks_are_honest(looked, name: str, estimate: str) -> None:
    assert looked[name, estimate, "alarmed"] <= LOOKED * ALPHA
    assert looked[name, estimate, "peeked"] > looked[name, estimate, "alarmed"]


@pytest.mark.parametrize(("name", "lift"), [("depth", 0.3), ("breadth", 0.2)])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_power_is_what_the_plan_says(name: str, lift: float, estimate: str) -> None:
    tests = 3_000
    users, power, covered = power_of(name, estimate, lift=lift, power=0.8, tests=tests, seed=5)
    assert 300 < users < 3_000
    low, high = limits(tests, 0.8)
    assert low <= tests * power <= high
    assert tests * covered >= binom.ppf(ONE_IN_A_THOUSAND, tests, 0.95)


@pytest.mark.parametrize("name", ["depth", "breadth"])
def test_the_lift_of_the_simulation_is_the_planned_one(name: str) -> None:
    generator = np.random.default_rng(3)
    arm = generator.random((1, 1_000_000)) < 0.5
    column = people(generator, arm, name, 0.2)["messages" if name == "depth" else "active"]
    assert column[arm].mean() / column[~arm].mean() == pytest.approx(1.2, abs=0.015)


def test_many_tests_at_once_are_judged_as_one_by_one() -> None:
    ((arm, there, made),) = stream(np.random.default_rng(4), (5, 400), end_only=True)
    rows = {"control": ~arm & there, "candidate": arm & there}
    at_once = {name: sums_of_tests(made, those, pairs()) for name, those in rows.items()}
    arms = arms_of_tests(made, arm, there, pairs())
    ends = [compare_many(metric, arms, estimate, ALPHA) for metric, estimate in ROWS]
    for i in range(5):
        one = {
            name: sums_of({key: column[i] for key, column in made.items()}, those[i])
            for name, those in rows.items()
        }
        assert {name: sums[i] for name, sums in at_once.items()} == one
        for (metric, estimate), end in zip(ROWS, ends, strict=True):
            found = compare(metric, one, estimate, ALPHA)
            assert end.pvalue[i] == pytest.approx(found.pvalue), (metric.name, estimate)
            assert end.low[i] == pytest.approx(found.rel_effect_size_ci_lower), (metric.name, estimate)
            assert end.high[i] == pytest.approx(found.rel_effect_size_ci_upper), (metric.name, estimate)


def test_an_imbalance_of_one_percent_among_a_million_is_found() -> None:
    assert ratio_alarms(1_000_000, 0.505, 200, seed=1) == 1.0
    assert ratio_alarms(1_000_000, 0.5, 2_000, seed=2) <= 0.005
