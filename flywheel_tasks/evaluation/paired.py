"""Paired differences of two policies or models: a sign-flip test over users, and intervals that are no surer than it.

Where few users differ, a t interval or a bootstrap leaves out zero too easily: four new refusals of four users among
thirty, and none fewer, are an even chance four times over (p = 0.125), but their t interval ends above zero.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from flywheel_tasks.evaluation.intervals import CONFIDENCE, Estimate, share

RESAMPLES = 4999
NO_DIFFERENCE = "nothing differs"
_SEED = 0


def user_totals(differences: Sequence[float], users: Sequence[Hashable]) -> np.ndarray:
    """Differences added up by user, in the order in which users come.

    Args:
        differences: one a row.
        users: of the rows.
    """
    totals: dict[Hashable, float] = defaultdict(float)
    for difference, user in zip(differences, users, strict=True):
        totals[user] += float(difference)
    return np.array(list(totals.values()))


def sign_flip(totals: np.ndarray, seed: int = _SEED) -> float | None:
    """Two-sided p-value that totals are symmetric around zero; users without a difference say nothing.

    Args:
        totals: of :func:`user_totals`.
        seed: of the permutations (all of them are tried where they are few).

    Returns:
        the p-value; None with fewer than two users.
    """
    if len(totals) < 2:
        return None
    totals = totals[totals != 0]
    if len(totals) < 2:  # both signs of one are as likely
        return 1.0
    result = stats.permutation_test(
        (totals,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, result.pvalue))


def no_surer_than_the_test(
    estimate: Estimate, differences: Sequence[float], users: Sequence[Hashable], *, bounded: bool
) -> Estimate:
    """An interval of a mean difference, widened to zero where the sign-flip test over users does not leave zero out.

    Where so few users differ that no signs could tell (five), it also reaches as far as the share of rows that differ
    may be (:func:`~flywheel_tasks.evaluation.intervals.share`): on the difference's own side, on both where there is
    none. So equal rows leave open what that many could have missed, not an interval of no width.

    Args:
        estimate: of the mean difference.
        differences: one a row.
        users: of the rows.
        bounded: whether all differences lie between -1 and 1; of others, equal rows have no interval.
    """
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return estimate
    totals = user_totals(differences, users)
    differing = int(np.count_nonzero(totals))
    error = 1 - CONFIDENCE
    if low > 0 or high < 0:
        p_value = sign_flip(totals)
        if p_value is None or p_value >= error:
            low, high = min(low, 0.0), max(high, 0.0)
    if bounded and 2.0 ** (1 - differing) >= error:
        most = share(np.abs(np.asarray(differences, dtype=float)).tolist(), users)["high"] or 0.0
        value = estimate["value"] or 0.0
        low, high = (min(low, -most) if value <= 0 else low), (max(high, most) if value >= 0 else high)
    elif not np.any(differences):
        return {**estimate, "low": None, "high": None, "reason": NO_DIFFERENCE}
    return {**estimate, "low": low, "high": high}
