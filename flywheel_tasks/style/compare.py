"""Style features of two sets of replies to the same prompts: effect size and corrected p-value."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.evaluation.paired import RESAMPLES, sign_flip, user_totals
from flywheel_tasks.style.features import FEATURES, Feature

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """One feature in two sets of replies.

    Attributes:
        feature: its name.
        before: mean in the first set.
        after: mean in the second set.
        effect: mean of the paired differences over their standard deviation (Cohen's d_z); None where the
            differences are equal and not zero.
        p_value: two-sided, of a sign-flip permutation test over users; None with fewer than two users.
        p_holm: corrected for the number of features (Holm 1979).
        flagged: ``p_holm`` below 0.05.
        users: whose replies are compared; fewer than all where cards ask for the feature.
    """

    feature: str
    before: float
    after: float
    effect: float | None
    p_value: float | None
    p_holm: float | None
    flagged: bool
    users: int

    def as_metrics(self) -> dict[str, Any]:
        """The numbers, for a metrics file."""
        return {key: value for key, value in asdict(self).items() if key != "feature"}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected by the step-down method of Holm 1979, in the given order.

    Args:
        p_values: each in [0, 1].

    Raises:
        ValueError: one is not.
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():  # false for NaN too
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


def can_flag(users: int, features: int) -> bool:
    """Whether any change could be flagged: the least p-value of the sign-flip test, corrected, is below 0.05.

    Args:
        users: whose signs are flipped; there are 2 ** users outcomes.
        features: that are tested together.
    """
    return users >= 2 and max(2.0 ** (1 - users), 2 / (RESAMPLES + 1)) * features < ALPHA


def compare(
    rows: Sequence[tuple[Sequence[Turn], str, str]],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    features: Mapping[str, Feature] = FEATURES,
    asked: Sequence[Collection[str]] | None = None,
) -> list[Comparison]:
    """Compare every feature between two replies to each history.

    Args:
        rows: history, first reply, second reply.
        clusters: the user of each row; differences are added up by user before signs are flipped.
        seed: of the permutations (all of them are tried where they are few).
        features: what is compared; the registered ones, maybe with some that were found in the data.
        asked: of each row, the features that it says nothing of, because its card asks for them
            (:func:`flywheel_tasks.style.asked.asked_for`); none by default.

    Returns:
        one comparison a feature, in the registry's order; none of a feature that every row's card asks for.

    Raises:
        ValueError: there are no rows, or the lengths differ.
    """
    if not rows or len(rows) != len(clusters):
        raise ValueError(
            f"a comparison needs rows, and one user each: {len(rows)} rows, {len(clusters)} users"
        )
    asked = [()] * len(rows) if asked is None else asked
    raw = []
    for name, feature in features.items():
        free = [place for place, names in zip(range(len(rows)), asked, strict=True) if name not in names]
        if free:
            raw.append(_compare_one(feature, [rows[i] for i in free], [clusters[i] for i in free], seed))
    tested = [item.p_value for item in raw if item.p_value is not None]
    corrected = iter(holm(tested))
    return [item if item.p_value is None else _with_holm(item, next(corrected)) for item in raw]


def _with_holm(item: Comparison, p_holm: float) -> Comparison:
    return Comparison(**{**asdict(item), "p_holm": p_holm, "flagged": p_holm < ALPHA})


def _compare_one(
    feature: Feature,
    rows: Sequence[tuple[Sequence[Turn], str, str]],
    clusters: Sequence[Hashable],
    seed: int,
) -> Comparison:
    before = np.array([float(feature.measure(history, first)) for history, first, _ in rows])
    after = np.array([float(feature.measure(history, second)) for history, _, second in rows])
    difference = after - before
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    average = float(difference.mean())
    effect = average / spread if spread > 0 else (0.0 if average == 0 else None)
    return Comparison(
        feature=feature.name,
        before=float(before.mean()),
        after=float(after.mean()),
        effect=effect,
        p_value=sign_flip(user_totals(difference.tolist(), clusters), seed),
        p_holm=None,
        flagged=False,
        users=len(set(clusters)),
    )
