"""What both reward-model stages do: pairs to rows, training, and the measure on held-out users.

They differ in the pairs that they take, in how a pair is encoded, and in what scores a reply (:class:`Recipe`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.agreement import agreement
from flywheel_tasks.rewards.card_reading import reading, twins
from flywheel_tasks.rewards.earlier import against_earlier, start_of
from flywheel_tasks.rewards.earlier_pairs import Found, earlier_pairs
from flywheel_tasks.rewards.encoding import Kind, Limits, at_limit, reward_tokenizer
from flywheel_tasks.rewards.pairs import Pair, PairError, load_pairs, require
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.rewards.surface import one_feature
from flywheel_tasks.rewards.trainer import Row, train_rows
from flywheel_tasks.settings import PreferenceModel

Scorer = TypeVar("Scorer", PointwiseScorer, PairwiseScorer)
Encode = Callable[[PreTrainedTokenizerBase, Pair, Limits], tuple[list[int], list[list[int]]]]


@dataclass(frozen=True)
class Recipe(Generic[Scorer]):
    """One of the two reward models.

    Attributes:
        kind: its name.
        choose: which of the pairs of a purpose are used.
        encode: the token ids of a pair: its prompt, and what follows it, the chosen side before the rejected one.
        scorer: scores replies by a trained model.
        margins: logit of P(chosen) of each pair by a scorer; the last argument says what the progress line is about.
    """

    kind: Kind
    choose: Callable[[Sequence[Pair]], list[Pair]]
    encode: Encode
    scorer: type[Scorer]
    margins: Callable[[Scorer, Sequence[Pair], str | None], list[float]]


def rows_of(
    encode: Encode, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limits: Limits
) -> tuple[list[Row], list[str]]:
    """Pairs as token ids.

    Returns:
        the rows, and the ids of pairs whose replies are equal once cut to the token limit: those teach
        nothing (OpenRLHF/OpenRLHF#1311) and are left out.
    """
    rows: list[Row] = []
    equal: list[str] = []
    for pair in pairs:
        prompt, (better, worse) = encode(tokenizer, pair, limits)
        if better == worse:
            equal.append(pair.pair_id)
        else:
            rows.append(Row(pair.pair_id, tuple(prompt), tuple(better), tuple(worse)))
    return rows, equal


def replies_at_limit(rows: Sequence[Row], limits: Limits) -> int:
    """Replies of a pointwise model that end at its token limit."""
    return sum(at_limit(row.prompt, side, limits) for row in rows for side in (row.better, row.worse))


def train_and_measure(
    io: StageIO, recipe: Recipe[Scorer], section: PreferenceModel, most: int | None = None
) -> Mapping[str, Any]:
    """Train on the ``reward_train`` pairs and on earlier generations', measure on the ``reward_heldout`` ones.

    Args:
        io: the stage.
        recipe: which model.
        section: its settings.
        most: pairs to train on in all, the own ones first; by default there is no limit.

    Raises:
        PairError: the pairs table breaks a rule, or no pair is left to train on.
        TrainingError: see :func:`flywheel_tasks.rewards.trainer.train_rows`.
    """
    path = io.dep("data/preferences/pairs.parquet")
    pairs = load_pairs(path)
    require(pairs, path)
    limits = Limits(recipe.kind, section.max_tokens, min(io.settings.prompt.max_tokens, section.max_tokens))
    tokenizer = reward_tokenizer(io.dep("models/base"))
    own: list[Pair] = recipe.choose(pairs["reward_train"])
    heldout: list[Pair] = recipe.choose(pairs["reward_heldout"])
    room = None if most is None else most - len(own)
    before: Found = earlier_pairs(io, section.earlier_pairs, own, pairs["reward_heldout"], room)
    rows, equal = rows_of(recipe.encode, tokenizer, [*own, *before.pairs], limits)
    if not rows:
        raise PairError(f"{path}: every reward_train pair is equal within {section.max_tokens} tokens")
    out = io.out(f"models/{recipe.kind}_rm")
    start = start_of(io, recipe.kind, section.start)
    trained = train_rows(
        io,
        section,
        rows,
        limits,
        start=start.folder,
        tokenizer=tokenizer,
        out=out,
        curve=io.out(f"plots/{recipe.kind}_rm.csv"),
    )

    def margins_of(folder: Path, found: Sequence[Pair], what: str = "the earlier model") -> list[float]:
        scorer = recipe.scorer(folder, compute=io.settings.compute)
        return recipe.margins(scorer, found, f"{io.stage.name}: {what}")

    # Loaded as the stages load it that use it, and as the earlier model is: in the same precision.
    under_rules: list[Pair] = twins(heldout, len(heldout), io.settings.seed)
    found = margins_of(out, [*heldout, *under_rules], "held-out pairs")
    margins = found[: len(heldout)]
    return {
        "train": trained.metrics
        | {"pairs": len(rows), "left_out_as_equal": len(equal)}
        | ({"replies_at_limit": replies_at_limit(rows, limits)} if recipe.kind == "pointwise" else {}),
        "start": start.account,
        "pairs": {"own": len(own), "earlier": len(before.pairs), "by_generation": before.account},
        "heldout": agreement(heldout, margins) | {"surface": one_feature([*own, *before.pairs], heldout)},
        "card_reading": reading(under_rules, found[len(heldout) :]),
        "earlier": against_earlier(io, recipe.kind, heldout, margins, margins_of),
        "head_moved": trained.head_moved,
    }
