"""Stage ``train_pointwise_rm``: a Bradley-Terry reward model, r(x, y) with P(y1 > y2) = sigmoid(r1 - r2)."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.encoding import Limits, encode_replies
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.rewards.recipe import Recipe, train_and_measure
from flywheel_tasks.rewards.scoring import PointwiseScorer


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, limits: Limits
) -> tuple[list[int], list[list[int]]]:
    """The prompt, and the chosen and the rejected reply, each to be scored alone."""
    return encode_replies(tokenizer, pair.card, pair.history, [pair.chosen, pair.rejected], limits)


def pointwise_margins(
    scorer: PointwiseScorer, pairs: Sequence[Pair], progress: str | None = None
) -> list[float]:
    """r(chosen) - r(rejected) of each pair, the logit of P(chosen)."""
    scores = scorer.score(
        [(p.card, p.history, reply) for p in pairs for reply in (p.chosen, p.rejected)], progress=progress
    )
    return [better - worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]


def run(io: StageIO) -> Mapping[str, Any]:
    """Train on all ``reward_train`` pairs and earlier generations', measure on all ``reward_heldout`` ones.

    Raises:
        PairError: see :func:`flywheel_tasks.rewards.recipe.train_and_measure`.
        TrainingError: see there.
    """
    recipe = Recipe("pointwise", list, encode_pair, PointwiseScorer, pointwise_margins)
    return train_and_measure(io, recipe, io.settings.pointwise_rm)
