"""Which prompts are evaluated, and the check that no evaluated user was trained on."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from flywheel_tasks.chat.card import Card
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.tables import read_rows

SOURCES = ("user", "internal")
EVALUATION = "evaluation"


class LeakError(ValueError):
    """Users of the evaluation split are in a split that something was trained on."""


def check_disjoint(folder: Path) -> None:
    """Make sure that no user of the evaluation split is in another split.

    Args:
        folder: with one Parquet table a split.

    Raises:
        LeakError: one is; the message names the files and the users.
    """
    users = {
        split: set(pq.read_table(folder / f"{split}.parquet", columns=["user_id"])["user_id"].to_pylist())
        for split in SPLITS
    }
    for split in SPLITS:
        shared = users[split] & users[EVALUATION]
        if split != EVALUATION and shared:
            some = ", ".join(sorted(map(str, shared))[:5])
            raise LeakError(
                f"{folder / EVALUATION}.parquet and {split}.parquet share {len(shared)} users ({some}); "
                "evaluation users must be in no other split"
            )


def trained_cards(folder: Path) -> list[str]:
    """Ids of the cards of every split but the evaluation's: those that something was trained or tuned on.

    Args:
        folder: with one Parquet table a split.
    """
    ids: set[str] = set()
    for split in SPLITS:
        if split != EVALUATION:
            ids.update(pq.read_table(folder / f"{split}.parquet", columns=["card_id"])["card_id"].to_pylist())
    return sorted(ids)


def select(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw evaluation prompts: as many user as internal ones where there are enough, spread over users.

    The two sources are reported apart, so each gets half of the prompts; what one lacks the other gives.
    Within a source, users are taken in turn, so that one user with many prompts does not lead.

    Args:
        rows: of the evaluation split.
        count: how many at most.
        seed: of the draw.

    Returns:
        the drawn rows, sorted by prompt id.

    Raises:
        ValueError: there are none, a source is unknown, or a prompt id repeats.
    """
    ids = [row["prompt_id"] for row in rows]
    if not rows or len(set(ids)) < len(ids):
        raise ValueError(f"the evaluation split has {len(ids)} prompts with {len(set(ids))} different ids")
    if unknown := {row["source"] for row in rows} - set(SOURCES):
        raise ValueError(f"the evaluation split has unknown sources: {', '.join(sorted(map(str, unknown)))}")
    queues = {
        source: _by_turns(
            [row for row in rows if row["source"] == source], np.random.default_rng([seed, place])
        )
        for place, source in enumerate(SOURCES)
    }
    half = {"user": (count + 1) // 2, "internal": count // 2}
    spare = {source: max(0, half[source] - len(queues[source])) for source in SOURCES}
    taken = [
        row
        for source, other in (SOURCES, SOURCES[::-1])
        for row in queues[source][: half[source] + spare[other]]
    ]
    return sorted((dict(row) for row in taken), key=lambda row: row["prompt_id"])


def _by_turns(rows: Iterable[Mapping[str, Any]], rng: np.random.Generator) -> list[Mapping[str, Any]]:
    """The rows in an order that takes one of each user in turn; users and their rows shuffled."""
    by_user: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["prompt_id"]):
        by_user[row["user_id"]].append(row)
    users = sorted(by_user)
    queues = [
        [by_user[users[u]][i] for i in rng.permutation(len(by_user[users[u]]))]
        for u in rng.permutation(len(users))
    ]
    depth = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(depth) for queue in queues if turn < len(queue)]


def load_cards(path: Path) -> dict[str, Card]:
    """The cards of a table, by id."""
    return {row["card_id"]: Card.from_row(row) for row in read_rows(path)}


def card_of(row: Mapping[str, Any], cards: Mapping[str, Card], path: Path) -> Card:
    """The card of a prompt.

    Raises:
        ValueError: there is none; the message names the prompt and the file.
    """
    if row["card_id"] not in cards:
        raise ValueError(f"prompt {row['prompt_id']}: card {row['card_id']} is not in {path}")
    return cards[row["card_id"]]
