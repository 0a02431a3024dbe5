"""Whether a reward model's probabilities mean what they say: Brier score and expected calibration error.

A pair has no first and second: the annotators' choice is the outcome, and the model's P(chosen) is judged. A
model that always says 1/2 has a Brier score of 0.25 and no calibration error; one that is confidently wrong
has more of both.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import bootstrap

from flywheel_tasks.evaluation.intervals import Estimate, mean

_BINS = 10
_RESAMPLES = 1000
ONE_USER = "pairs of one user have no interval"


def brier(margins: Sequence[float], users: Sequence[Hashable]) -> Estimate:
    """Mean squared error of P(chosen) = sigmoid(margin), with an interval clustered by user (Brier 1950)."""
    return mean(((1 - expit(np.asarray(margins, dtype=float))) ** 2).tolist(), users)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over ten bins of equal width (Guo et al. 2017, equation 3).

    Args:
        confidence: of each row, in [1/2, 1].
        right: 1, 1/2 (a tie) or 0 for each row.
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        inside = bins == number
        total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(total)


def calibration_error(margins: Sequence[float], users: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Expected calibration error with a 95% percentile interval of a bootstrap over users.

    With few pairs the value is biased upwards: bins hold few rows each, and noise counts as error.

    Args:
        margins: logit of P(chosen) of each pair.
        users: whose pair it is; pairs of one user are drawn together.
        seed: of the resamples.
    """
    values = np.asarray(margins, dtype=float)
    confidence = expit(np.abs(values))
    right = np.where(values == 0, 0.5, values > 0).astype(float)
    return over_users(
        lambda rows: expected_calibration_error(confidence[rows], right[rows]), users, seed=seed
    )


def over_users(statistic: Callable[[np.ndarray], float], users: Sequence[Hashable], *, seed: int) -> Estimate:
    """A statistic of rows with a 95% percentile interval of a bootstrap that draws whole users.

    Efron and Tibshirani 1993, chapter 13; clusters are the units that are drawn.

    Args:
        statistic: of row numbers, which may repeat.
        users: of the rows.
        seed: of the resamples.

    Returns:
        the estimate; rows of one user have no interval, and the reason says so.
    """
    n = len(users)
    if n == 0:
        return Estimate(value=None, low=None, high=None, n=0, clusters=0)
    rows: dict[Hashable, list[int]] = {}
    for row, user in enumerate(users):
        rows.setdefault(user, []).append(row)
    groups = [np.asarray(group) for group in rows.values()]
    value = statistic(np.arange(n))
    if len(groups) < 2:
        return Estimate(value=value, low=None, high=None, n=n, clusters=len(groups), reason=ONE_USER)
    found = bootstrap(
        (np.arange(len(groups)),),
        lambda drawn: statistic(np.concatenate([groups[index] for index in drawn])),
        vectorized=False,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value=value, low=float(found.low), high=float(found.high), n=n, clusters=len(groups))
