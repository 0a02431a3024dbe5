"""The demo's character cards, with the checks that stand behind their instructions.

A card's instructions are plain sentences for the model; the check behind each sentence is known here only.
"""

from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Literal

import orjson

from flywheel_tasks.chat.card import Card
from flywheel_tasks.simulation.rules import Check, rules
from flywheel_tasks.simulation.wording import content_words, stem

Heldout = Literal["characters", "wordings"]
_FILES = ("cards.jsonl", "heldout_characters.jsonl", "heldout_wordings.jsonl")


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("flywheel_tasks.simulation").joinpath(name).read_text(encoding="utf-8")
    return [orjson.loads(line) for line in text.splitlines() if line.strip()]


def _cards(name: str) -> tuple[Card, ...]:
    return tuple(
        Card(
            row["card_id"],
            row["name"],
            tuple(row["traits"]),
            tuple(item["text"] for item in row["instructions"]),
            row.get("greeting"),
        )
        for row in _rows(name)
    )


@cache
def load_cards() -> tuple[Card, ...]:
    """All cards written for the demo, in the file's order."""
    return _cards("cards.jsonl")


@cache
def heldout_cards(group: Heldout) -> tuple[Card, ...]:
    """Cards that no simulated traffic ever has: only :mod:`flywheel_tasks.simulation.panel` reads them.

    Args:
        group: ``characters``: persons whom no training card has, with instructions in the words of training cards;
            ``wordings``: characters of training cards, with instructions in words that no training card has, and of
            kinds that the character does not have there, so that to remember the character is of no help.
    """
    return _cards(f"heldout_{group}.jsonl")


@cache
def _all_rows() -> tuple[dict[str, Any], ...]:
    return tuple(row for name in _FILES for row in _rows(name))


@cache
def _checks() -> dict[str, Check]:
    drawn = {text: rule.check for rule in rules() for text in rule.wordings}
    return drawn | {
        item["text"]: Check(item["kind"], item.get("value"))
        for row in _all_rows()
        for item in row["instructions"]
    }


@cache
def _worlds() -> dict[str, frozenset[str]]:
    return {row["card_id"]: frozenset(stem(word) for word in row["world"]) for row in _all_rows()}


@cache
def _emojis() -> dict[str, str]:
    return {row["card_id"]: row["emoji"] for row in _all_rows() if "emoji" in row}


def character_of(card_id: str) -> str:
    """Id of the first card of a character of the traffic, of whom this is another; else the id itself.

    Args:
        card_id: of any card; other cards of ``harbor-mae`` are ``harbor-mae-2``, ``harbor-mae-3`` ...
    """
    first, dash, number = card_id.rpartition("-")
    return first if dash and number.isdecimal() and first in _worlds() else card_id


def emojis_of(card_id: str) -> str:
    """Emoji of a character's world, for a card that asks for one; of one that is not of the traffic, a smile."""
    return _emojis().get(character_of(card_id), "🙂")


@lru_cache(maxsize=1024)
def world_of(card: Card) -> frozenset[str]:
    """Stems of the words that belong to a character's life: those of its traits, and more that were written for it.

    A word that the card's instructions demand is none: it is counted there.
    """
    traits = {stem(word) for trait in card.traits for word in content_words(trait)}
    demanded = {
        stem(str(check.value)) for check in checks_of(card) if check.kind in ("mention", "start_word")
    }
    return (_worlds().get(character_of(card.card_id), frozenset()) | traits) - demanded


def check_of(instruction: str) -> Check | None:
    """The check behind one instruction; None where it is not among the demo's."""
    return _checks().get(instruction)


def checks_of(card: Card) -> tuple[Check, ...]:
    """The checks behind a card's instructions.

    An instruction that is not among the demo's has no check here: the simulated people cannot judge it.
    """
    known = _checks()
    return tuple(known[text] for text in card.instructions if text in known)
