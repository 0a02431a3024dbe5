"""Preference pairs as reward models read them, with the checks that keep bad ones out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fields import FieldError, card_of, turns_of
from flywheel_tasks.storage.tables import read_rows

KINDS = ("ranking", "rewrite")
PURPOSES = ("reward_train", "reward_heldout", "policy")


class PairError(ValueError):
    """The pairs table breaks a rule; the message names the file, the row and the rule."""


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, the better one known.

    Attributes:
        pair_id: stable id.
        prompt_id: which prompt.
        user_id: whose conversation it is; intervals are clustered by it.
        card: the character.
        history: turns, the last one the user's.
        chosen: the better reply.
        rejected: the worse reply.
        kind: ``ranking`` (an annotator ranked both), ``rewrite`` (chosen is an annotator's text), ``set`` (of a named
            set) or ``rules`` (of :mod:`flywheel_tasks.rewards.card_reading`); the last two are in no table.
        consensus: several reviews agree on it: good enough to measure with.
        one_review: what one review says of it: 1 as chosen, 0 the other way, 1/2 equal; None where nobody ranked it.
    """

    pair_id: str
    prompt_id: str
    user_id: str
    card: Card
    history: tuple[Turn, ...]
    chosen: str
    rejected: str
    kind: Literal["ranking", "rewrite", "set", "rules"]
    consensus: bool = False
    one_review: float | None = None


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    for key in ("pair_id", "prompt_id", "user_id", "card_id", "card_name"):
        if not row[key]:
            raise PairError(f"{where}: {key} is empty")
        if not isinstance(row[key], str):
            raise PairError(f"{where}: {key} is no text")
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise PairError(f"{where}: {key} has no text")
    if row["kind"] not in KINDS:
        raise PairError(f"{where}: kind {row['kind']!r} is none of {', '.join(KINDS)}")
    if row["one_review"] not in (None, 0.0, 0.5, 1.0):
        raise PairError(f"{where}: one_review {row['one_review']!r} is none of 0, 0.5, 1")
    try:
        history = turns_of(row["history"])
        card = card_of({**row, "name": row["card_name"]}, row["card_id"])
    except FieldError as error:
        raise PairError(f"{where}: {error}") from error
    if not history or history[-1]["role"] != "user":
        raise PairError(f"{where}: history does not end with a user's turn")
    return Pair(
        pair_id=row["pair_id"],
        prompt_id=row["prompt_id"],
        user_id=row["user_id"],
        card=card,
        history=history,
        chosen=row["chosen"],
        rejected=row["rejected"],
        kind=row["kind"],
        consensus=bool(row["consensus"]),
        one_review=row["one_review"],
    )


def load_pairs(path: Path) -> dict[str, list[Pair]]:
    """Read the pairs of ``data/preferences/pairs.parquet`` by purpose, each sorted by pair_id.

    Args:
        path: the table.

    Returns:
        one list for each of ``reward_train``, ``reward_heldout`` and ``policy``.

    Raises:
        PairError: a row breaks a rule, an id repeats, or a user is both trained on and measured on.
    """
    return parse_pairs(read_rows(path), path)


def parse_pairs(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, list[Pair]]:
    """Check rows of a pairs table and sort them by purpose; as :func:`load_pairs`, ``path`` is for messages."""
    found: dict[str, list[Pair]] = {purpose: [] for purpose in PURPOSES}
    seen: set[str] = set()
    for number, row in enumerate(rows):
        where = f"{path}: row {number} (pair {row.get('pair_id')})"
        if row["purpose"] not in found:
            raise PairError(f"{where}: purpose {row['purpose']!r} is none of {', '.join(PURPOSES)}")
        if row["agreement"] is not None and not (
            isinstance(row["agreement"], int | float) and math.isfinite(row["agreement"])
        ):
            raise PairError(f"{where}: agreement is not a number")
        pair = _pair(row, where)
        if pair.pair_id in seen:
            raise PairError(f"{where}: pair_id repeats")
        seen.add(pair.pair_id)
        found[row["purpose"]].append(pair)
    train, heldout = ({pair.user_id for pair in found[purpose]} for purpose in PURPOSES[:2])
    if both := sorted(train & heldout):
        raise PairError(f"{path}: users are in both reward_train and reward_heldout: {', '.join(both[:5])}")
    return {purpose: sorted(pairs, key=lambda pair: pair.pair_id) for purpose, pairs in found.items()}


def require(pairs: Mapping[str, Sequence[Pair]], path: Path) -> None:
    """Stop when there is nothing to train on or nothing to measure on.

    Raises:
        PairError: reward_train or reward_heldout has no pair.
    """
    for purpose in PURPOSES[:2]:
        if not pairs[purpose]:
            raise PairError(f"{path}: no pair with purpose {purpose}")
