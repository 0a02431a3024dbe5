"""The always-valid bound: its formula, its duality with the p-value, and that it holds under daily looks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from flywheel_tasks.online.sequential import bound, pvalue, rho


def test_the_parameter_of_the_source_is_near_the_best() -> None:
    # The source's closed form is within 1% of the exact minimum.
    n, alpha = 5_000, 0.05
    best = optimize.minimize_scalar(
        lambda log_r: math.sqrt(
            2
            * (n * math.exp(2 * log_r) + 1)
            / (n * math.exp(2 * log_r))
            * math.log(math.sqrt(n * math.exp(2 * log_r) + 1) / alpha)
        )
    ).fun
    assert best <= bound(n, n, alpha) < 1.01 * best
    assert n * rho(n, alpha) ** 2 == pytest.approx(7.94, abs=0.01)


def test_its_lowest_point_is_what_the_union_bound_needs() -> None:
    lowest = min(bound(n, 1000, 0.05) for n in range(1, 200_000, 7))
    assert lowest > 3.03
    assert 20 * 2 * stats.norm.sf(lowest) < 0.05


@given(n=st.floats(1, 1e8), planned=st.floats(10, 1e7), alpha=st.floats(0.001, 0.2), z=st.floats(0, 30))
def test_the_interval_leaves_out_zero_when_the_pvalue_is_below(
    n: float, planned: float, alpha: float, z: float
) -> None:
    limit = bound(n, planned, alpha)
    if abs(z - limit) > 1e-6:
        assert (z > limit) == (pvalue(z, n, planned, alpha) < alpha)


def test_a_stream_of_users_is_rarely_misjudged() -> None:
    # 2,000 null streams, looked at after each of 50 batches of 40 users: a fixed level of 5% would fail in about 30%.
    steps = np.random.default_rng(1).standard_normal((2_000, 50)) * math.sqrt(40)
    n = 40 * np.arange(1, 51)
    z = np.abs(np.cumsum(steps, axis=1) / np.sqrt(n))
    limits = np.array([bound(count, 2_000, 0.05) for count in n])
    wrong = np.count_nonzero((z > limits).any(axis=1))
    assert wrong <= stats.binom.ppf(0.999, 2_000, 0.05)
    assert np.count_nonzero((z > 1.96).any(axis=1)) > 400
