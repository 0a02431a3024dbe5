"""What a simulated annotator writes in place of a reply that breaks its card or is poor.

For each character and each line that simulated users say there are replies written for this project (``answers``). They
are drawn without a look at the hidden utility: a person writes what they would say, and does not optimise.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import orjson

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.cards import character_of, checks_of, emojis_of, load_cards
from flywheel_tasks.simulation.obeying import obeying
from flywheel_tasks.simulation.population import answerable
from flywheel_tasks.simulation.rules import Check

WORD = "{w}"  # in a reply: the word of the character's that the user took up


@cache
def answers_of(card_id: str) -> Mapping[str, tuple[str, ...]]:
    """The written replies of a card's character, by the line of the bank that they answer; none for an unknown one."""
    first = character_of(card_id)
    if first not in {card.card_id for card in load_cards()}:  # an id of somebody's logs is no path
        return {}
    path = files("flywheel_tasks.simulation").joinpath("answers", f"{first}.jsonl")
    rows = map(orjson.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["to"]: tuple(row["replies"]) for row in rows}


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each line of the bank, with what finds it in a message; ``{word}`` is one word, other slots any text."""
    found = []
    for line in answerable():
        parts = re.split(r"(\{\w+\})", line)
        pattern = "".join(
            r"(?P<w>[^\W\d_]+)" if part == "{word}" else ".+?" if part.startswith("{") else re.escape(part)
            for part in parts
        )
        found.append((line, re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE)))
    return tuple(found)


def said_last(message: str) -> tuple[str, str | None] | None:
    """The last line of the bank in a user's message, and the word that fills it.

    Args:
        message: what a user wrote, in any case.

    Returns:
        line and word (None where the line has no place for one); None if no line is in it.
    """
    found = [(match, line) for line, pattern in _patterns() for match in pattern.finditer(message)]
    if not found:
        return None
    # Of two that end at one place, the longer says more.
    match, line = max(found, key=lambda one: (one[0].end(), -one[0].start()))
    word = match.groupdict().get("w")
    return line, word and word.lower()


def rewrite(card: Card, history: Sequence[Turn], reply: str, rng: random.Random) -> str | None:
    """A reply that the character could give instead, obedient to the card.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: what it replaces.
        rng: for the choice.

    Returns:
        one of those written for what the user said last, and not said in this conversation; None if there is none.
    """
    said = said_last(history[-1]["content"])
    if said is None:
        return None
    line, word = said
    before = {turn["content"] for turn in history} | {reply}
    texts = [text.replace(WORD, word or "") for text in answers_of(card.card_id).get(line, ())]
    free = [text for text in (written_for(card, text, rng) for text in texts) if text and text not in before]
    return rng.choice(free) if free else None


def written_for(card: Card, text: str, rng: random.Random) -> str | None:
    """What the character says by its first card, as another of its cards demands it.

    Args:
        card: of the traffic.
        text: a reply that obeys the character's first card.
        rng: for the choices.

    Returns:
        the reply, or None if it cannot be made to obey.
    """
    return obeying(
        text,
        checks_of(card),
        _first_checks(character_of(card.card_id)),
        emojis=emojis_of(card.card_id),
        common=_common_words(),
        rng=rng,
    )


@cache
def _first_checks(character: str) -> tuple[Check, ...]:
    return next((checks_of(card) for card in load_cards() if card.card_id == character), ())


@cache
def _common_words() -> frozenset[str]:
    """Words that stand with a small letter somewhere: no names."""
    texts = (
        text
        for card in load_cards()
        for replies in answers_of(card.card_id).values()
        for text in replies
        if not any(check.kind == "lowercase" for check in checks_of(card))
    )
    return frozenset(word for text in texts for word in re.findall(r"(?<!\w)[a-z']+", text))
