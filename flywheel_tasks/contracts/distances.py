"""How far a distribution is from an earlier one, both as profiles keep them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Distribution = Mapping[str, Any]
_FLOOR = 1e-4  # least share in a stability index, whose logarithm an empty category would make infinite


def distance(kind: str, now: Distribution, before: Distribution) -> float:
    """The distance that a contract names.

    Args:
        kind: see :class:`flywheel_tasks.contracts.measures.Drift`.
        now: a distribution of a profile with at least one row.
        before: another one of the same kind.
    """
    if kind in ("kolmogorov_smirnov", "wasserstein"):
        values, mine, its = lengths(now, before)
        if kind == "kolmogorov_smirnov":
            return float(np.abs(np.cumsum(mine - its)).max())
        from scipy.stats import wasserstein_distance

        return float(wasserstein_distance(values, values, mine, its))
    _, mine, its = categories(now, before)
    if kind == "jensen_shannon":
        from scipy.spatial.distance import jensenshannon

        return float(np.nan_to_num(jensenshannon(mine, its, base=2)))  # rounding can give a root below 0
    from scipy.special import rel_entr

    mine, its = (np.maximum(shares, _FLOOR) for shares in (mine, its))
    return float((rel_entr(mine, its) + rel_entr(its, mine)).sum())


def lengths(now: Distribution, before: Distribution) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths (characters) that either has, sorted, and the share of each in both."""
    mine, its = dict(map(tuple, now["counts"])), dict(map(tuple, before["counts"]))
    values = sorted({*mine, *its})
    return (
        np.array(values, float),
        np.array([mine.get(v, 0) for v in values], float) / now["rows"],
        np.array([its.get(v, 0) for v in values], float) / before["rows"],
    )


def categories(now: Distribution, before: Distribution) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Categories of both, and the share of each. The last, ``other``, holds what only one of them names while
    the other names not all of its categories.
    """
    mine, its = now["counts"], before["counts"]
    shared = set(mine) | set(its)
    if before["other"]:
        shared &= set(its)
    if now["other"]:
        shared &= set(mine)
    names = sorted(shared)
    shares = []
    for counts, rows in ((mine, now["rows"]), (its, before["rows"])):
        found = [counts.get(category, 0) / rows for category in names]
        shares.append(np.array([*found, max(0.0, 1 - sum(found))]))
    return [*names, "other"], shares[0], shares[1]
