"""Prompts of a split with their cards, and the table columns that carry a prompt from stage to stage."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fields import FieldError, turns_of
from flywheel_tasks.curation.sampling import draw_order, stratified
from flywheel_tasks.storage.tables import read_rows

CONTEXT = [
    ("card_id", pa.string()),
    ("card_name", pa.string()),
    ("traits", pa.list_(pa.string())),
    ("instructions", pa.list_(pa.string())),
    ("history", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
]


class PromptError(ValueError):
    """A table of prompts or replies breaks a rule; the message names the file, the row and the rule."""


@dataclass(frozen=True)
class Prompt:
    """A card and a history that wait for a reply.

    Attributes:
        prompt_id: stable id.
        source: user or internal.
        card: the character.
        history: turns, the last one the user's.
        conversation_id: that it is a turn of; empty where the prompt stands alone.
        user_id: who said it; empty where nobody known did, as in sets.
    """

    prompt_id: str
    source: str
    card: Card
    history: tuple[Turn, ...]
    conversation_id: str = ""
    user_id: str = ""

    @property
    def chat(self) -> tuple[Card, tuple[Turn, ...]]:
        """What samplers and scorers take."""
        return self.card, self.history

    @property
    def conversation(self) -> str:
        """Key of its conversation: what a policy says in every turn of one chat is no template."""
        return self.conversation_id or self.prompt_id

    @property
    def user(self) -> str:
        """Key of its user: what one user's prompts show is no independent evidence."""
        return self.user_id or self.prompt_id

    def context(self) -> dict[str, Any]:
        """The columns of :data:`CONTEXT`."""
        return {
            "card_id": self.card.card_id,
            "card_name": self.card.name,
            "traits": list(self.card.traits),
            "instructions": list(self.card.instructions),
            "history": [dict(turn) for turn in self.history],
        }


def prompt_of(row: Mapping[str, Any], card: Card, where: str) -> Prompt:
    """A prompt from a row with ``prompt_id``, ``source`` and ``history``.

    Args:
        row: of a table.
        card: the row's card.
        where: file and row, for messages.

    Raises:
        PromptError: an id is empty, a turn has not its fields, or the history does not end with a user's turn.
    """
    for key in ("prompt_id", "source"):
        if not row[key]:
            raise PromptError(f"{where}: {key} is empty")
    try:
        history = turns_of(row["history"])
    except FieldError as error:
        raise PromptError(f"{where}: {error}") from error
    if not history or history[-1]["role"] != "user":
        raise PromptError(f"{where}: history does not end with a user's turn")
    return Prompt(
        row["prompt_id"],
        row["source"],
        card,
        history,
        row.get("conversation_id") or "",
        row.get("user_id") or "",
    )


def card_from_context(row: Mapping[str, Any]) -> Card:
    """The card of a row with the columns of :data:`CONTEXT`."""
    return Card.from_row({**row, "name": row["card_name"]})


def load_split(split: Path, cards: Path) -> list[Prompt]:
    """The prompts of a split, sorted by id.

    Args:
        split: a table of the splits.
        cards: the curated cards.

    Raises:
        PromptError: the split is empty, an id repeats, a card is missing, or a row breaks a rule.
    """
    known = {row["card_id"]: Card.from_row(row) for row in read_rows(cards)}
    found: dict[str, Prompt] = {}
    for number, row in enumerate(read_rows(split)):
        where = f"{split}: row {number} (prompt {row['prompt_id']})"
        if row["card_id"] not in known:
            raise PromptError(f"{where}: card {row['card_id']} is not in {cards}")
        if row["prompt_id"] in found:
            raise PromptError(f"{where}: prompt_id repeats")
        found[row["prompt_id"]] = prompt_of(row, known[row["card_id"]], where)
    if not found:
        raise PromptError(f"{split}: has no prompts")
    return [found[key] for key in sorted(found)]


def choose(prompts: Sequence[Prompt], most: int, seed: int, purpose: str) -> list[Prompt]:
    """At most ``most`` prompts in the given mix of sources; the order is drawn as well.

    Args:
        prompts: to choose from.
        most: prompts wanted.
        seed: of the draw.
        purpose: keeps this draw apart from others of the same seed.
    """
    rows = [{"prompt_id": prompt.prompt_id, "source": prompt.source} for prompt in prompts]
    sources = Counter(prompt.source for prompt in prompts)
    taken = stratified(rows, lambda row: row["source"], sources, most, seed, purpose)
    chosen = [prompt for prompt in prompts if prompt.prompt_id in taken]
    return sorted(chosen, key=lambda prompt: draw_order(seed, purpose, prompt.prompt_id))
