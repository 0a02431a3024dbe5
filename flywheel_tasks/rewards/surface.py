"""What a judge would reach that looks at one feature of the surface: a reward model's accuracy is held against it.

Where the better replies differ from the worse ones in their form, as annotators' rewrites do from a policy's replies,
a model can learn the form alone, and a policy that is trained on it will.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.style.features import FEATURES


def _more(name: str, pairs: Sequence[Pair]) -> np.ndarray:
    """1 where the chosen reply has more of a feature, 0 where the rejected one has, 1/2 where they have the same."""
    measure = FEATURES[name].measure
    values = [[measure(pair.history, text) for text in (pair.chosen, pair.rejected)] for pair in pairs]
    chosen, rejected = np.asarray(values, dtype=float).reshape(-1, 2).T
    return 0.5 + 0.5 * np.sign(chosen - rejected)


def one_feature(learned: Sequence[Pair], heldout: Sequence[Pair]) -> dict[str, Any]:
    """The judge by one style feature that does best on the training pairs, measured on the held-out ones.

    Args:
        learned: pairs by which the feature is chosen, and whether more or less of it is better; at least one.
        heldout: pairs that it is measured on.

    Returns:
        ``feature`` (its meaning), ``better`` (``more`` or ``less``) and ``accuracy`` with its interval, ties one half.
    """
    shares = {name: float(_more(name, learned).mean()) for name in FEATURES}
    name = max(shares, key=lambda one: abs(shares[one] - 0.5))
    right = _more(name, heldout)
    if shares[name] < 0.5:
        right = 1 - right
    return {
        "feature": FEATURES[name].meaning,
        "better": "more" if shares[name] >= 0.5 else "less",
        "accuracy": share(right.tolist(), [pair.user_id for pair in heldout]),
    }
