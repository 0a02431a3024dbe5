"""Style features: functions of a history and a reply, binary or counted (METHOD: style-artifact control).

A feature describes the surface. It is neither good nor bad; one that correlates with the reward, or jumps
between two policies, is a sign that the surface is being optimised.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.style import text

Measure = Callable[[Sequence[Turn], str], float]


@dataclass(frozen=True)
class Feature:
    """One style feature.

    Attributes:
        name: short id.
        kind: ``binary`` (0 or 1) or ``count``.
        meaning: one phrase for people.
        measure: its value for a history and a reply.
    """

    name: str
    kind: Literal["binary", "count"]
    meaning: str
    measure: Measure


FEATURES: dict[str, Feature] = {}


def feature(name: str, kind: Literal["binary", "count"], meaning: str) -> Callable[[Measure], Measure]:
    """Register a function as a style feature.

    Raises:
        ValueError: the name is taken.
    """

    def add(measure: Measure) -> Measure:
        if name in FEATURES:
            raise ValueError(f"style feature {name} exists already")
        FEATURES[name] = Feature(name, kind, meaning, measure)
        return measure

    return add


@feature("words", "count", "words")
def _words(history: Sequence[Turn], reply: str) -> float:
    return len(text.words(reply))


@feature("sentences", "count", "sentences")
def _sentences(history: Sequence[Turn], reply: str) -> float:
    return text.sentences(reply)


@feature("emoji", "count", "emoji")
def _emoji(history: Sequence[Turn], reply: str) -> float:
    return text.emoji_count(reply)


@feature("list", "binary", "has a list")
def _list(history: Sequence[Turn], reply: str) -> float:
    return text.has_list(reply)


@feature("exclamation", "count", "exclamation marks")
def _exclamation(history: Sequence[Turn], reply: str) -> float:
    return reply.count("!")


@feature("question", "binary", "ends with a question")
def _question(history: Sequence[Turn], reply: str) -> float:
    return text.ending(reply).endswith("?")


@feature("i_feel", "binary", "says “I feel”")
def _i_feel(history: Sequence[Turn], reply: str) -> float:
    return bool(re.search(r"\bi feel\b", reply, re.IGNORECASE))


@feature("opens_with_i", "binary", "opens with “I”")
def _opens_with_i(history: Sequence[Turn], reply: str) -> float:
    return bool(re.match(r"[\W_]*I(?:'[a-z]+)?\b", text.straight(reply)))


@feature("interjection", "binary", "opens with an interjection (ah, oh, well, hmm …)")
def _interjection(history: Sequence[Turn], reply: str) -> float:
    return bool(re.match(r"[\W_]*(?:a+h+|o+h+|well|h+m+|so|hey|haha\w*|wow|aww*)\b", reply, re.IGNORECASE))


@feature("action", "binary", "describes an *action*")
def _action(history: Sequence[Turn], reply: str) -> float:
    return bool(re.search(r"(?<!\*)\*[^*\n]+\*(?!\*)", reply))


@feature("capitals", "binary", "shouts a word of three or more capitals")
def _capitals(history: Sequence[Turn], reply: str) -> float:
    return bool(re.search(r"\b[A-Z]{3,}\b", reply)) and reply != reply.upper()


@feature("ellipsis", "binary", "has an ellipsis")
def _ellipsis(history: Sequence[Turn], reply: str) -> float:
    return "…" in reply or "..." in reply


@feature("line_breaks", "count", "line breaks")
def _line_breaks(history: Sequence[Turn], reply: str) -> float:
    return reply.strip().count("\n")


@feature("echo", "count", "share of its words that the user's last turn has")
def _echo(history: Sequence[Turn], reply: str) -> float:
    said = text.words(reply)
    last = set(text.words(history[-1]["content"])) if history else set()
    return sum(word in last for word in said) / len(said) if said else 0.0
