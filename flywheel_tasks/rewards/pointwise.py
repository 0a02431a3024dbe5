"""Stage ``train_pointwise_rm``: a Bradley-Terry reward model, r(x, y) with P(y1 > y2) = sigmoid(r1 - r2)."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.agreement import agreement
from flywheel_tasks.rewards.earlier import against_earlier
from flywheel_tasks.rewards.encoding import Limits, encode_replies, reward_tokenizer
from flywheel_tasks.rewards.pairs import Pair, PairError, load_pairs, require
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.rewards.trainer import Row, train_rows


def pointwise_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limits: Limits
) -> tuple[list[Row], list[str]]:
    """Pairs as token ids.

    Returns:
        the rows, and the ids of pairs whose replies are equal once cut to the token limit: those teach
        nothing (OpenRLHF/OpenRLHF#1311) and are left out.
    """
    rows: list[Row] = []
    equal: list[str] = []
    for pair in pairs:
        prompt, (better, worse) = encode_replies(
            tokenizer, pair.card, pair.history, [pair.chosen, pair.rejected], limits
        )
        if better == worse:
            equal.append(pair.pair_id)
        else:
            rows.append(Row(pair.pair_id, tuple(prompt), tuple(better), tuple(worse)))
    return rows, equal


def pointwise_margins(
    scorer: PointwiseScorer, pairs: Sequence[Pair], progress: str | None = None
) -> list[float]:
    """r(chosen) - r(rejected) of each pair, the logit of P(chosen)."""
    scores = scorer.score(
        [(p.card, p.history, reply) for p in pairs for reply in (p.chosen, p.rejected)], progress=progress
    )
    return [better - worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]


def run(io: StageIO) -> Mapping[str, Any]:
    """Train on the ``reward_train`` pairs, measure on the ``reward_heldout`` ones.

    Raises:
        PairError: the pairs table breaks a rule, or no pair is left to train on.
    """
    section = io.settings.pointwise_rm
    path = io.dep("data/preferences/pairs.parquet")
    pairs = load_pairs(path)
    require(pairs, path)
    limits = Limits("pointwise", section.max_tokens, min(io.settings.prompt.max_tokens, section.max_tokens))
    tokenizer = reward_tokenizer(io.dep("models/base"))
    rows, equal = pointwise_rows(tokenizer, pairs["reward_train"], limits)
    if not rows:
        raise PairError(f"{path}: every reward_train pair is equal within {section.max_tokens} tokens")
    trained = train_rows(
        io,
        section,
        rows,
        limits,
        tokenizer=tokenizer,
        out=io.out("models/pointwise_rm"),
        curve=io.out("plots/pointwise_rm.csv"),
    )
    scorer = PointwiseScorer.from_model(trained.model, tokenizer, limits, io.settings.compute)
    heldout = pairs["reward_heldout"]
    margins = pointwise_margins(scorer, heldout, progress=f"{io.stage.name}: held-out pairs")
    earlier = against_earlier(
        io,
        "pointwise",
        heldout,
        margins,
        lambda folder, found: pointwise_margins(
            PointwiseScorer(folder, compute=io.settings.compute),
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
