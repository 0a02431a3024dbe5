"""Stage ``train_pairwise_rm``: both replies in one encoding. It only judges; no policy is trained by it."""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.encoding import Limits, encode_comparisons
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.rewards.recipe import Recipe, train_and_measure
from flywheel_tasks.rewards.scoring import PairwiseScorer


def choose_pairs(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """At most ``most`` pairs, prompt by prompt in a seeded random order; the last prompt may lose some of its pairs."""
    prompts = sorted({pair.prompt_id for pair in pairs})
    random.Random(seed).shuffle(prompts)
    place = {prompt: index for index, prompt in enumerate(prompts)}
    return sorted(pairs, key=lambda pair: (place[pair.prompt_id], pair.pair_id))[:most]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, limits: Limits
) -> tuple[list[int], list[list[int]]]:
    """The conversation, and the chosen reply judged beside the rejected one, and the other way round."""
    orders = [(pair.rejected, pair.chosen), (pair.chosen, pair.rejected)]
    return encode_comparisons(tokenizer, pair.card, pair.history, orders, limits)


def pairwise_margins(
    scorer: PairwiseScorer, pairs: Sequence[Pair], progress: str | None = None
) -> list[float]:
    """Logit of P(chosen) of each pair."""
    return scorer.margins([(p.card, p.history, p.chosen, p.rejected) for p in pairs], progress=progress)


def run(io: StageIO) -> Mapping[str, Any]:
    """Train on at most ``max_pairs`` pairs, the own ones first; measure on as many ``reward_heldout`` ones.

    Raises:
        PairError: see :func:`flywheel_tasks.rewards.recipe.train_and_measure`.
        TrainingError: see there.
    """
    section = io.settings.pairwise_rm
    choose = partial(choose_pairs, most=section.max_pairs, seed=io.settings.seed)
    recipe = Recipe("pairwise", choose, encode_pair, PairwiseScorer, pairwise_margins)
    return train_and_measure(io, recipe, section, section.max_pairs)
