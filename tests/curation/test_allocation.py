import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from flywheel_tasks.curation.allocation import InfeasibleError, Marginal, allocate
from flywheel_tasks.curation.sampling import largest_remainder

SHAPE = (2, 3, 3)


def strata(seed, most=12):
    """Codes, prior and available rows of strata of three dimensions."""
    random = np.random.default_rng(seed)
    codes = np.array(list(np.ndindex(SHAPE)))[random.permutation(18)[: random.integers(6, 19)]]
    prior = random.integers(1, most, len(codes))
    return codes, prior, random.binomial(prior, 0.7)


def matched(codes, prior, total):
    found = []
    for place, size in enumerate(SHAPE):
        counts = {value: float(prior[codes[:, place] == value].sum()) for value in range(size)}
        for value, target in largest_remainder(counts, total).items():
            found.append(Marginal(f"d{place}", str(value), codes[:, place] == value, target))
    return found


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_totals_are_exact_and_targets_as_near_as_an_integer_programme_gets(seed, part):
    codes, prior, available = strata(seed)
    assume(available.sum() > 4)
    total = max(1, int(part * available.sum()))
    marginals = matched(codes, prior, total)
    found = allocate(available, prior, marginals, total)
    assert found.sum() == total
    assert ((found >= 0) & (found <= available)).all()
    off = sum(abs(found[m.strata].sum() - m.target) for m in marginals)
    # The least sum of differences, by a programme written apart: n, then above and below each target.
    rows = np.array([m.strata.astype(float) for m in marginals])
    matrix = np.block(
        [
            [np.ones((1, len(codes))), np.zeros((1, 2 * len(rows)))],
            [rows, -np.eye(len(rows)), np.eye(len(rows))],
        ]
    )
    right = [total, *(m.target for m in marginals)]
    cost = [0] * len(codes) + [1] * 2 * len(rows)
    upper = [*available, *[total] * 2 * len(rows)]
    best = milp(
        cost,
        constraints=LinearConstraint(matrix, right, right),
        bounds=(0, upper),
        integrality=np.ones(len(cost)),
    )
    assert off <= best.fun + 2 * len(
        SHAPE
    )  # rounding after raking costs less than a unit up and down a dimension


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 8), st.integers(0, 8), st.integers(0, 40))
def test_bounds_hold_or_are_named_and_an_error_means_there_is_no_way(seed, low, high, total):
    codes, prior, available = strata(seed)
    assume(1 <= total <= available.sum())
    marginals = [
        *matched(codes, prior, total),
        Marginal("d0", "0", codes[:, 0] == 0, None, low),
        Marginal("d1", "1", codes[:, 1] == 1, None, 0, high),
    ]
    first, second = codes[:, 0] == 0, codes[:, 1] == 1
    matrix = np.array([np.ones(len(codes)), first, second], dtype=float)
    possible = milp(
        np.zeros(len(codes)),
        constraints=LinearConstraint(matrix, [total, low, 0], [total, np.inf, high]),
        bounds=(0, available),
        integrality=np.ones(len(codes)),
    ).success
    if possible:
        found = allocate(available, prior, marginals, total)
        assert found.sum() == total
        assert found[first].sum() >= low
        assert found[second].sum() <= high
    else:
        with pytest.raises(InfeasibleError, match=r"d0=0: at least|d1=1: at most"):
            allocate(available, prior, marginals, total)


def test_the_message_says_how_much_is_missing():
    codes = np.array([0, 1])
    marginals = [Marginal("source", "internal", codes == 1, None, 30)]
    with pytest.raises(InfeasibleError, match=r"source=internal: at least 30 \(10 short\)"):
        allocate(np.array([100, 20]), np.array([100, 40]), marginals, 50)


def test_the_mix_within_a_marginal_is_kept():
    # Twice as many of the second row of a table are wanted; within it the columns stay as they were.
    prior = np.array([60, 40, 30, 10])
    row = np.array([0, 0, 1, 1])
    marginals = [Marginal("row", str(value), row == value, target) for value, target in ((0, 50), (1, 40))]
    assert allocate(prior, prior, marginals, 90).tolist() == [30, 20, 30, 10]


def test_more_than_there_is_cannot_be_taken():
    with pytest.raises(ValueError, match="5 rows wanted, 3 available"):
        allocate(np.array([3]), np.array([3]), [], 5)
