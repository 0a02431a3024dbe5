"""The hidden utility: how much a simulated person likes a reply.

It is what the learner must find out from signals and labels; only the simulated people may read it. It is a
weighted sum of plain features of (card, history, reply); docs/simulation.md lists them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.cards import checks_of, world_of
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.wording import (
    content_words,
    emoji_count,
    ends_sentence,
    sentences,
    stem,
    words,
)

_REFUSAL = re.compile(
    r"\b(?:i'?m|i am) (?:so |very |really )?sorry,? (?:but )?(?:i|as)\b"
    r"|\bi (?:can'?t|cannot|can not|am unable to|'?m unable to|'?m not able to|am not able to) "
    r"(?:help|assist|do that|provide|answer|discuss|engage|chat|respond|fulfil|continue|offer|give you|have)"
    r"|\bi don'?t have (?:personal|feelings|emotions|a physical|the ability|access)",
    re.IGNORECASE,
)
_MACHINE = re.compile(
    r"\bas an? (?:ai|artificial|language model|chatbot|virtual|digital|assistant)"
    r"|\b(?:i'?m|i am) (?:just )?an? (?:ai|artificial|language model|chatbot|virtual|digital|computer)",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"how (?:can|may|could) i (?:help|assist)|here to (?:help|assist)|happy to (?:help|assist)|feel free to"
    r"|let me know if|great question|what(?:'s| is) on your mind|hope (?:this|that) helps"
    r"|(?:i'?m|i am) (?:so )?glad to"
    r"|(?:i'?m|i am) ready to|it'?s (?:great|nice|wonderful) to (?:hear|meet|see)"
    r"|(?:do not|don't) hesitate"
    r"|sounds like (?:you're|you are|a (?:great|fantastic|wonderful))",
    re.IGNORECASE,
)
_STAGE = re.compile(r"\[[^\]]{2,}\]|^\s*(?:user|assistant|system)\s*:", re.IGNORECASE | re.MULTILINE)
_FIRST_PERSON = frozenset(
    {"i", "i'm", "i've", "i'd", "i'll", "me", "my", "mine", "myself", "we", "our", "us"}
)
_SELF_NAMED = re.compile(r"\b(?:[Mm]y name is|[Tt]he name(?: is|'s)|I(?:'m| am) called) ([A-Z][a-z]+)")
WALL_WORDS = 60


@dataclass(frozen=True)
class Taste:
    """How much one person cares for each feature, and the length they like.

    Attributes:
        instructions: per obeyed (+) or broken (-) card instruction, averaged over the card's instructions.
        length: for a reply of the preferred length; negative far from it.
        complete: for a finished (+) or cut (-) last sentence.
        repetition: taken off for each share of repeated word triples.
        relevance: for taking up what the user said.
        asks: for a question back.
        voice: for speaking in the first person.
        assistant: taken off for refusals and for speaking as a machine.
        template: taken off for stock phrases of assistants.
        surface: taken off for walls of text, more emoji than this person likes, and stage directions.
        persona: for a word of the character's own world; taken off for another name than the card's.
        variety: taken off for a reply that begins or ends as an earlier one of the conversation did.
        words: preferred number of words.
        emoji: most emoji in one reply that they put up with.
    """

    instructions: float = 1.6
    length: float = 0.8
    complete: float = 0.8
    repetition: float = 2.5
    relevance: float = 0.6
    asks: float = 0.5
    voice: float = 0.3
    assistant: float = 1.5
    template: float = 0.9
    surface: float = 1.0
    persona: float = 0.4
    variety: float = 0.7
    words: float = 20.0
    emoji: int = 3


AVERAGE = Taste()
FEATURES = tuple(field.name for field in fields(Taste) if field.name not in ("words", "emoji"))


def refuses(reply: str) -> bool:
    """Is the reply a refusal in the manner of an assistant, or out of character as a machine?"""
    text = reply.replace("’", "'")
    return bool(_REFUSAL.search(text) or _MACHINE.search(text))


def templated(reply: str) -> bool:
    """Does the reply use a stock phrase of assistants?"""
    return bool(_TEMPLATE.search(reply.replace("’", "'")))


def violations(card: Card, reply: str) -> int:
    """Number of the card's instructions that the reply breaks (those the demo knows)."""
    return sum(not obeys(check, reply) for check in checks_of(card))


def _triples(tokens: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]


def repetition(history: Sequence[Turn], reply: str) -> float:
    """Share (0 to 1) of the reply's word triples that it or the character's earlier replies had before."""
    triples = _triples(words(reply))
    if not triples:
        return 0.0
    seen = {t for turn in history if turn["role"] == "assistant" for t in _triples(words(turn["content"]))}
    repeated = 0
    for triple in triples:
        repeated += triple in seen
        seen.add(triple)
    return repeated / len(triples)


def _length(card: Card, reply: str, liked: float) -> float:
    """1 at the liked length, falling with the logarithm of the ratio to -1 (three times as long or short)."""
    limits = [int(c.value or 0) for c in checks_of(card) if c.kind == "max_words"]
    target = min([liked, *(0.75 * limit for limit in limits)])
    return max(-1.0, 1.0 - 2.0 * abs(math.log(max(len(words(reply)), 1) / target)) / math.log(3.0))


def _relevance(history: Sequence[Turn], reply: str) -> float:
    asked = {stem(word) for word in content_words(history[-1]["content"])} if history else set()
    return min(len(asked & {stem(word) for word in content_words(reply)}), 2) / 2


def persona(card: Card, reply: str) -> float:
    """1 for a word of the character's own world, -1 for a name that is not the character's, else 0."""
    names = {match.lower() for match in _SELF_NAMED.findall(reply.replace("’", "'"))}
    if names - set(words(card.name)):
        return -1.0
    return float(bool(world_of(card) & {stem(word) for word in words(reply)}))


def _ends(reply: str) -> tuple[str, str]:
    """The first two words, and the last sentence without its marks."""
    said = sentences(reply)
    return " ".join(words(reply)[:2]), " ".join(words(said[-1])) if len(said) > 1 else ""


def sameness(card: Card, history: Sequence[Turn], reply: str) -> float:
    """0 to 1: one half for the opening and one for the last sentence of an earlier reply of the conversation.

    An opening that the card demands is no fault.
    """
    opening, ending = _ends(reply)
    earlier = [_ends(turn["content"]) for turn in history if turn["role"] == "assistant"]
    demanded = any(check.kind == "start_word" for check in checks_of(card))
    same_opening = not demanded and bool(opening) and opening in {first for first, _ in earlier}
    same_ending = bool(ending) and ending in {last for _, last in earlier}
    return 0.5 * same_opening + 0.5 * same_ending


def features(
    card: Card,
    history: Sequence[Turn],
    reply: str,
    *,
    liked_words: float = AVERAGE.words,
    most_emoji: int = AVERAGE.emoji,
) -> dict[str, float]:
    """The features of a reply, each between -1 and 1, in the order of :data:`FEATURES`.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: the text to judge.
        liked_words: preferred number of words.
        most_emoji: more than these are spam.
    """
    checks = checks_of(card)
    silent = any(check.kind == "no_question" for check in checks)
    surface = (
        (len(words(reply)) > WALL_WORDS) + (emoji_count(reply) > most_emoji) + bool(_STAGE.search(reply))
    )
    return {
        "instructions": sum(2.0 * obeys(c, reply) - 1.0 for c in checks) / len(checks) if checks else 0.0,
        "length": _length(card, reply, liked_words),
        "complete": 1.0 if ends_sentence(reply) else -1.0,
        "repetition": -repetition(history, reply),
        "relevance": _relevance(history, reply),
        "asks": float("?" in reply and not silent and len(sentences(reply)) < 8),
        "voice": float(bool(_FIRST_PERSON & set(words(reply)))),
        "assistant": -float(refuses(reply)),
        "template": -float(templated(reply)),
        "surface": -float(min(surface, 1)),
        "persona": persona(card, reply),
        "variety": -sameness(card, history, reply),
    }


def utility(card: Card, history: Sequence[Turn], reply: str, taste: Taste = AVERAGE) -> float:
    """How much a person of this taste likes the reply; about -6 to 5; nothing at all is worth about -3.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: the text to judge.
        taste: the person's weights.
    """
    values = features(card, history, reply, liked_words=taste.words, most_emoji=taste.emoji)
    return sum(getattr(taste, name) * value for name, value in values.items())
