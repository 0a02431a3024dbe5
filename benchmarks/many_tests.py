"""Many A/B tests judged at once: one by one, nearly all the time goes into tea-tasting's distributions.

A test compares both ways with each other (tests/online/test_calibration.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tea_tasting as tt
from scipy import stats

from flywheel_tasks.online.metrics import Estimate, Metric
from flywheel_tasks.online.sums import Sums


def sums_of_tests(
    found: Mapping[str, np.ndarray], rows: np.ndarray, wanted: Iterable[tuple[str, str]]
) -> list[Sums]:
    """The sums of one arm of many tests at once; tests and users are the two axes."""
    names = sorted({name for pair in wanted for name in pair})
    products = sorted({(min(pair), max(pair)) for pair in wanted} | {(name, name) for name in names})
    part = {name: found[name] * rows for name in names}
    sums = {name: part[name].sum(axis=1) for name in names}
    squares = {(a, b): np.einsum("ij,ij->i", part[a], part[b]) for a, b in products}
    return [
        Sums(
            n=int(n),
            sums={name: int(values[test]) for name, values in sums.items()},
            products={pair: int(values[test]) for pair, values in squares.items()},
        )
        for test, n in enumerate(rows.sum(axis=1))
    ]


def _stacked(sums: Sequence[Sums]) -> tt.aggr.Aggregates:
    """Aggregates whose every figure is an array, of one arm of many tests."""
    each = [one.aggregates() for one in sums]
    return tt.aggr.Aggregates(
        count_=np.array([one.count_ for one in each]),
        mean_={name: np.array([one.mean_[name] for one in each]) for name in each[0].mean_},
        var_={name: np.array([one.var_[name] for one in each]) for name in each[0].var_},
        cov_={pair: np.array([one.cov_[pair] for one in each]) for pair in each[0].cov_},
    )


def arms_of_tests(
    found: Mapping[str, np.ndarray], arm: np.ndarray, there: np.ndarray, wanted: Iterable[tuple[str, str]]
) -> dict[str, tt.aggr.Aggregates]:
    """Both arms of many tests, for :func:`compare_many`.

    Args:
        found: columns; tests and users are the two axes.
        arm: who is in the candidate arm.
        there: who has entered.
        wanted: products of columns.
    """
    rows = {"control": ~arm & there, "candidate": arm & there}
    return {name: _stacked(sums_of_tests(found, those, wanted)) for name, those in rows.items()}


class Ends(NamedTuple):
    """What the ends of many tests say of a metric: p-value, and interval of the lift as a share, one for each test."""

    pvalue: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _student(variances: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Standard error of a difference of two means, and its degrees of freedom (Welch)."""
    parts = [variance / n for variance, n in zip(variances, counts, strict=True)]
    error = sum(parts)
    return np.sqrt(error), error**2 / sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))


def compare_many(
    metric: Metric, arms: Mapping[str, tt.aggr.Aggregates], estimate: Estimate, alpha: float
) -> Ends:
    """What :func:`flywheel_tasks.online.metrics.compare` says of each of many tests.

    Means, variances and CUPED are tea-tasting's own, of arrays.

    Args:
        metric: the metric.
        arms: of :func:`arms_of_tests`.
        estimate: raw, or with CUPED.
        alpha: of the interval.
    """
    test = metric.of(estimate)
    both = [arms["control"], arms["candidate"]]
    total, past, coefficient = both[0] + both[1], 1.0, 0.0
    if test.numer_covariate is not None:
        covariate = (test.numer_covariate, test.denom_covariate)
        past = total.mean(covariate[0]) / total.mean(covariate[1])
        coefficient = test._covariate_cov(total) / total.ratio_var(*covariate)
    means = [test._metric_mean(arm, coefficient, past) for arm in both]
    variances = [test._metric_var(arm, coefficient) for arm in both]
    counts = [arm.count() for arm in both]
    error, freedom = _student(variances, counts)
    pvalue = 2 * stats.t.sf(np.abs(means[1] - means[0]) / error, freedom)
    shares = [variance / mean**2 for variance, mean in zip(variances, means, strict=True)]
    error, freedom = _student(shares, counts)
    ratio, factor = means[1] / means[0], np.exp(stats.t.ppf(1 - alpha / 2, freedom) * error)
    return Ends(pvalue, ratio / factor - 1, ratio * factor - 1)
