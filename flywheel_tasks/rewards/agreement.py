"""How often a reward model agrees with the annotators on pairs that it has not seen."""

from collections.abc import Sequence
from typing import Any

from flywheel_tasks.evaluation.intervals import mean, share
from flywheel_tasks.rewards.calibration import brier, calibration_error
from flywheel_tasks.rewards.pairs import KINDS, Pair
from flywheel_tasks.style.text import emoji_count, lengths

_ALIKE = 1.25  # the longer reply is at most so many times as long as the shorter


def alike(pair: Pair) -> bool:
    """Whether the two replies have nearly the same length and as many emoji: only their content tells them apart."""
    shorter, longer = sorted(lengths(pair.chosen, pair.rejected)[:2])
    return longer <= _ALIKE * shorter and emoji_count(pair.chosen) == emoji_count(pair.rejected)


def longer_is_better(pair: Pair) -> float:
    """What a judge of length alone would say: 1 if the chosen reply is longer, 1/2 for equal lengths."""
    chosen, rejected, _ = lengths(pair.chosen, pair.rejected)
    return 0.5 if chosen == rejected else float(chosen > rejected)


def preferred(margins: Sequence[float]) -> list[float]:
    """1 where the model prefers the chosen reply, 0 where the other, 1/2 for a tie."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def measured(margins: Sequence[float], users: Sequence[str]) -> dict[str, Any]:
    """``pairs``, ``accuracy``, ``brier`` and ``calibration_error`` of margins, with intervals clustered by user."""
    return {
        "pairs": len(margins),
        "accuracy": share(preferred(margins), users),
        "brier": brier(margins, users),
        "calibration_error": calibration_error(margins, users),
    }


def by_set(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    """:func:`measured` on two sets of labels apart.

    Several reviews that agree are a label to measure with; one review is a noisy one, on which a better model need not
    look better (paper, section on annotation).

    Returns:
        ``consensus``: the pairs of the consensus set, rankings of policies' replies; without any, the accuracy is null
        with a ``reason``. ``single_review``: every ranked pair as one review has it, drawn
        where there are several; where that review prefers the other reply, so must the model. Pairs that it leaves
        equal have no answer and are counted as ``ties``.
    """
    consensus = [i for i, pair in enumerate(pairs) if pair.consensus]
    single = [(i, pair.one_review) for i, pair in enumerate(pairs) if pair.one_review is not None]
    decided = [(i, 1.0 if said == 1.0 else -1.0) for i, said in single if said != 0.5]
    agreed = measured([margins[i] for i in consensus], [pairs[i].user_id for i in consensus])
    if not consensus:
        agreed["accuracy"]["reason"] = "no held-out pair has several reviews that agree"
    return {
        "consensus": agreed,
        "single_review": measured(
            [sign * margins[i] for i, sign in decided], [pairs[i].user_id for i, _ in decided]
        )
        | {"ties": len(single) - len(decided)},
    }


def agreement(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    """How often a model prefers the chosen reply, with intervals clustered by user.

    Args:
        pairs: held-out pairs.
        margins: logit of P(chosen) of each: positive where the model prefers the chosen reply; a tie counts one
            half.

    Returns:
        ``pairs``, ``prompts``, ``accuracy``, ``accuracy_alike`` (of :func:`alike` pairs), ``accuracy_by_length``
        (of the rule that the longer reply is better, to compare with), ``margin``, ``brier``,
        ``calibration_error``, ``by_kind`` with an accuracy for each kind, and :func:`by_set`.
    """
    right = preferred(margins)
    users = [pair.user_id for pair in pairs]
    of_kind = {kind: [i for i, pair in enumerate(pairs) if pair.kind == kind] for kind in KINDS}
    even = [i for i, pair in enumerate(pairs) if alike(pair)]
    return {
        **measured(margins, users),
        "prompts": len({pair.prompt_id for pair in pairs}),
        "accuracy_alike": share([right[i] for i in even], [users[i] for i in even]),
        "accuracy_by_length": share([longer_is_better(pair) for pair in pairs], users),
        "margin": mean(margins, users),
        "by_kind": {
            kind: share([right[i] for i in rows], [users[i] for i in rows]) for kind, rows in of_kind.items()
        },
        "by_set": by_set(pairs, margins),
    }
