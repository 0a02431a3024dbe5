"""Stage ``train_pairwise_rm``: both replies in one encoding. It only judges; no policy is trained by it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.agreement import agreement
from flywheel_tasks.rewards.earlier import against_earlier
from flywheel_tasks.rewards.encoding import Limits, encode_comparisons, reward_tokenizer
from flywheel_tasks.rewards.pairs import Pair, PairError, load_pairs, require
from flywheel_tasks.rewards.scoring import PairwiseScorer
from flywheel_tasks.rewards.trainer import Row, train_rows


def choose_pairs(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """At most ``most`` pairs, prompt by prompt, the prompts in a seeded random order."""
    prompts = sorted({pair.prompt_id for pair in pairs})
    random.Random(seed).shuffle(prompts)
    place = {prompt: index for index, prompt in enumerate(prompts)}
    return sorted(pairs, key=lambda pair: (place[pair.prompt_id], pair.pair_id))[:most]


def pairwise_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limits: Limits
) -> tuple[list[Row], list[str]]:
    """Comparisons as token ids: the chosen reply judged beside the rejected one, and the other way round.

    Returns:
        the rows, and the ids of pairs whose replies are equal once cut to the token limit, which are left
        out.
    """
    rows: list[Row] = []
    equal: list[str] = []
    for pair in pairs:
        orders = [(pair.rejected, pair.chosen), (pair.chosen, pair.rejected)]
        prompt, (better, worse) = encode_comparisons(tokenizer, pair.card, pair.history, orders, limits)
        if better == worse:
            equal.append(pair.pair_id)
        else:
            rows.append(Row(pair.pair_id, tuple(prompt), tuple(better), tuple(worse)))
    return rows, equal


def pairwise_margins(
    scorer: PairwiseScorer, pairs: Sequence[Pair], progress: str | None = None
) -> list[float]:
    """Logit of P(chosen) of each pair."""
    return scorer.margins([(p.card, p.history, p.chosen, p.rejected) for p in pairs], progress=progress)


def run(io: StageIO) -> Mapping[str, Any]:
    """Train on at most ``max_pairs`` ``reward_train`` pairs, measure on as many ``reward_heldout`` ones.

    Raises:
        PairError: the pairs table breaks a rule, or no pair is left to train on.
    """
    section = io.settings.pairwise_rm
    path = io.dep("data/preferences/pairs.parquet")
    pairs = load_pairs(path)
    require(pairs, path)
    limits = Limits("pairwise", section.max_tokens, min(io.settings.prompt.max_tokens, section.max_tokens))
    tokenizer = reward_tokenizer(io.dep("models/base"))
    chosen = choose_pairs(pairs["reward_train"], section.max_pairs, io.settings.seed)
    rows, equal = pairwise_rows(tokenizer, chosen, limits)
    if not rows:
        raise PairError(f"{path}: every reward_train pair is equal within {section.max_tokens} tokens")
    trained = train_rows(
        io,
        section,
        rows,
        limits,
        tokenizer=tokenizer,
        out=io.out("models/pairwise_rm"),
        curve=io.out("plots/pairwise_rm.csv"),
    )
    scorer = PairwiseScorer.from_model(trained.model, tokenizer, limits, io.settings.compute)
    heldout = choose_pairs(pairs["reward_heldout"], section.max_pairs, io.settings.seed)
    margins = pairwise_margins(scorer, heldout, progress=f"{io.stage.name}: held-out pairs")
    earlier = against_earlier(
        io,
        "pairwise",
        heldout,
        margins,
        lambda folder, found: pairwise_margins(
            PairwiseScorer(folder, compute=io.settings.compute),
            found,
            progress=f"{io.stage.name}: the earlier model",
        ),
    )
    return {
        "train": trained.metrics | {"pairs": len(rows), "left_out_as_equal": len(equal)},
        "heldout": agreement(heldout, margins),
        "earlier": earlier,
        "head_moved": trained.head_moved,
    }
