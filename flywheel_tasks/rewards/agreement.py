"""How often a reward model agrees with the annotators on pairs that it has not seen."""

from collections.abc import Sequence
from typing import Any

import emoji

from flywheel_tasks.evaluation.intervals import mean, share
from flywheel_tasks.rewards.calibration import brier, calibration_error
from flywheel_tasks.rewards.pairs import KINDS, Pair

_ALIKE = 1.25  # the longer reply has at most so many times the words of the shorter


def alike(pair: Pair) -> bool:
    """Whether the two replies have nearly the same length and as many emoji: only their content tells them apart."""
    words = sorted(len(text.split()) for text in (pair.chosen, pair.rejected))
    emojis = [emoji.emoji_count(text) for text in (pair.chosen, pair.rejected)]
    return words[1] <= _ALIKE * words[0] and emojis[0] == emojis[1]


def longer_is_better(pair: Pair) -> float:
    """What a judge that only counts words would say: 1 if the chosen reply is longer, 1/2 for equal lengths."""
    chosen, rejected = (len(text.split()) for text in (pair.chosen, pair.rejected))
    return 0.5 if chosen == rejected else float(chosen > rejected)


def agreement(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    """How often a model prefers the chosen reply, with intervals clustered by user.

    Args:
        pairs: held-out pairs.
        margins: logit of P(chosen) of each: positive where the model prefers the chosen reply; a tie counts one
            half.

    Returns:
        ``pairs``, ``prompts``, ``accuracy``, ``accuracy_alike`` (of :func:`alike` pairs), ``accuracy_by_length``
        (of the rule that the longer reply is better, to compare with), ``margin``, ``brier``,
        ``calibration_error``, and ``by_kind`` with an accuracy for each kind.
    """
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    users = [pair.user_id for pair in pairs]
    of_kind = {kind: [i for i, pair in enumerate(pairs) if pair.kind == kind] for kind in KINDS}
    even = [i for i, pair in enumerate(pairs) if alike(pair)]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt_id for pair in pairs}),
        "accuracy": share(right, users),
        "accuracy_alike": share([right[i] for i in even], [users[i] for i in even]),
        "accuracy_by_length": share([longer_is_better(pair) for pair in pairs], users),
        "margin": mean(margins, users),
        "brier": brier(margins, users),
        "calibration_error": calibration_error(margins, users),
        "by_kind": {
            kind: share([right[i] for i in rows], [users[i] for i in rows]) for kind, rows in of_kind.items()
        },
    }
