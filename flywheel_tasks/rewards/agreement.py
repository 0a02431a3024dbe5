"""How often a reward model agrees with the annotators on pairs that it has not seen."""

from collections.abc import Sequence
from typing import Any

from flywheel_tasks.evaluation.intervals import mean, share
from flywheel_tasks.rewards.pairs import KINDS, Pair


def agreement(pairs: Sequence[Pair], margins: Sequence[float]) -> dict[str, Any]:
    """How often a model prefers the chosen reply, with intervals clustered by user.

    Args:
        pairs: held-out pairs.
        margins: for each, positive where the model prefers the chosen reply; a tie counts one half.

    Returns:
        ``pairs``, ``prompts``, ``accuracy``, ``margin``, and ``by_kind`` with an accuracy for each kind.
    """
    right = [0.5 if margin == 0 else float(margin > 0) for margin in margins]
    users = [pair.user_id for pair in pairs]
    of_kind = {kind: [i for i, pair in enumerate(pairs) if pair.kind == kind] for kind in KINDS}
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt_id for pair in pairs}),
        "accuracy": share(right, users),
        "margin": mean(margins, users),
        "by_kind": {
            kind: share([right[i] for i in rows], [users[i] for i in rows]) for kind, rows in of_kind.items()
        },
    }
