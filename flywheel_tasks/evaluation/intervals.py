"""95% intervals of shares and means over rows that come in clusters (several prompts of one user).

All return ``{"value", "low", "high", "n", "clusters"}``; without rows every number but the counts is None.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(TypedDict):
    """A value with its 95% interval, from ``n`` rows in ``clusters`` independent groups, or the reason for none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    reason: NotRequired[str]


def _cluster_variance(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, int]:
    """Linearised between-cluster variance of the mean, and how many clusters (Cochran 1977, section 9A)."""
    sums: dict[Hashable, float] = defaultdict(float)
    centre = float(values.mean())
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += float(value) - centre
    count = len(sums)
    if count < 2:
        return float("inf"), count
    between = sum(total**2 for total in sums.values())
    return count / (count - 1) * between / len(values) ** 2, count


def _checked(values: Sequence[float], clusters: Sequence[Hashable]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if len(array) != len(clusters):
        raise ValueError(f"{len(array)} values but {len(clusters)} clusters")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(array)))} is not a finite number")
    return array


def share(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of values between 0 and 1 with a Wilson interval on the effective sample size.

    The number of rows is divided by the design effect (variance between clusters over that of independent
    rows, at least 1), as Franco et al. 2019 (J. Survey Stat. Methodol. 7) do for clustered samples, and made smaller
    for the few clusters that this variance is known from (Korn and Graubard 1998, Survey Methodology 24). For scores
    of 0, 1/2 and 1 the interval is conservative.

    Args:
        values: one score a row, each in [0, 1].
        clusters: the group of each row (the user); rows of one group are not independent.

    Raises:
        ValueError: a value is not finite or outside [0, 1], or the lengths differ.
    """
    array = _checked(values, clusters)
    n = len(array)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0, clusters=0)
    if array.min() < 0 or array.max() > 1:
        raise ValueError("a share needs values between 0 and 1")
    value = float(array.mean())
    variance, count = _cluster_variance(array, clusters)
    independent = value * (1 - value) / n
    if count < 2:
        size = 1.0
    elif independent == 0:
        size = float(count)
    else:
        size = n / max(1.0, variance / independent) * _few(n, count)
    low, high = _wilson(value, size)
    return Estimate(value=value, low=low, high=high, n=n, clusters=count)


def _few(rows: int, clusters: int) -> float:
    """What an effective sample size loses by its degrees of freedom: 1 where every row is a cluster of its own."""
    one, other = stats.t.ppf(0.5 + CONFIDENCE / 2, [rows - 1, clusters - 1])
    return float((one / other) ** 2)


def _wilson(value: float, size: float) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927) for a possibly fractional sample size."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    scale = 1 + z**2 / size
    centre = (value + z**2 / (2 * size)) / scale
    half = z / scale * float(np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean with a cluster-robust t interval; no interval when all rows are of one cluster.

    Args and errors as :func:`share`, without the limits on the values.
    """
    array = _checked(values, clusters)
    n = len(array)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0, clusters=0)
    variance, count = _cluster_variance(array, clusters)
    value = float(array.mean())
    if count < 2:
        return Estimate(value=value, low=None, high=None, n=n, clusters=count)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.sqrt(variance))
    return Estimate(value=value, low=value - half, high=value + half, n=n, clusters=count)


def difference(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Estimate:
    """Difference of two independent shares, its interval made from theirs (Newcombe 1998, method 10).

    Args:
        first: an estimate.
        second: the one to subtract.

    Returns:
        the estimate; ``n`` and ``clusters`` are the sums. All None if either is missing.
    """
    n, clusters = (int(first[k] or 0) + int(second[k] or 0) for k in ("n", "clusters"))
    a, b = first["value"], second["value"]
    if a is None or b is None:
        return Estimate(value=None, low=None, high=None, n=n, clusters=clusters)
    a_low, a_high, b_low, b_high = (e[k] for e in (first, second) for k in ("low", "high"))
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return Estimate(value=a - b, low=None, high=None, n=n, clusters=clusters)
    return Estimate(
        value=a - b,
        low=a - b - float(np.hypot(a - a_low, b_high - b)),
        high=a - b + float(np.hypot(a_high - a, b - b_low)),
        n=n,
        clusters=clusters,
    )
