"""The demo's character cards, with the checks that stand behind their instructions.

A card's instructions are plain sentences for the model; the check behind each sentence is known here only.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from flywheel_tasks.chat.card import Card


@dataclass(frozen=True)
class Check:
    """What an instruction asks, in a form that code can test.

    Attributes:
        kind: one of :data:`flywheel_tasks.simulation.checks.KINDS`.
        value: a number or a word, where the kind needs one.
    """

    kind: str
    value: int | str | None = None


def _rows() -> list[dict[str, Any]]:
    text = files("flywheel_tasks.simulation").joinpath("cards.jsonl").read_text(encoding="utf-8")
    return [orjson.loads(line) for line in text.splitlines() if line.strip()]


@cache
def load_cards() -> tuple[Card, ...]:
    """All cards written for the demo, in the file's order."""
    return tuple(
        Card(
            row["card_id"],
            row["name"],
            tuple(row["traits"]),
            tuple(item["text"] for item in row["instructions"]),
        )
        for row in _rows()
    )


@cache
def _checks() -> dict[str, Check]:
    return {
        item["text"]: Check(item["kind"], item.get("value"))
        for row in _rows()
        for item in row["instructions"]
    }


def check_of(instruction: str) -> Check | None:
    """The check behind one instruction; None where it is not among the demo's."""
    return _checks().get(instruction)


def checks_of(card: Card) -> tuple[Check, ...]:
    """The checks behind a card's instructions.

    An instruction that is not among the demo's has no check here: the simulated people cannot judge it.
    """
    known = _checks()
    return tuple(known[text] for text in card.instructions if text in known)
