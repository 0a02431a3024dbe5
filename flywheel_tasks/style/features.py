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
Kind = Literal["binary", "count", "share"]


@dataclass(frozen=True)
class Feature:
    """One style feature.

    Attributes:
        name: short id.
        kind: ``binary`` (0 or 1), ``count``, or ``share`` (0 to 1).
        meaning: one phrase for people.
        measure: its value for a history and a reply.
        artifact: whether more of it is surface only, where no card asks for it (:mod:`flywheel_tasks.style.asked`);
            length, questions and echo are not.
    """

    name: str
    kind: Kind
    meaning: str
    measure: Measure
    artifact: bool = True


FEATURES: dict[str, Feature] = {}


def amount(name: str, mean: float) -> str:
    """The mean of a feature over replies, for people: counts as numbers, shares in percent.

    Args:
        name: of a feature; one that is not registered was found in the data, and a reply has it or not.
        mean: over some replies.
    """
    known = FEATURES.get(name)
    return f"{mean:.3g}" if known is not None and known.kind == "count" else f"{mean:.1%}"


def feature(name: str, kind: Kind, meaning: str, *, artifact: bool = True) -> Callable[[Measure], Measure]:
    """Register a function as a style feature.

    Raises:
        ValueError: the name is taken.
    """

    def add(measure: Measure) -> Measure:
        if name in FEATURES:
            raise ValueError(f"style feature {name} exists already")
        FEATURES[name] = Feature(name, kind, meaning, measure, artifact)
        return measure

    return add


@feature("words", "count", "words", artifact=False)
def _words(history: Sequence[Turn], reply: str) -> float:
    return len(text.words(reply))


@feature("sentences", "count", "sentences", artifact=False)
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
    return text.exclamations(reply)


@feature("question", "binary", "ends with a question", artifact=False)
def _question(history: Sequence[Turn], reply: str) -> float:
    return text.asks(reply)


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


@feature("echo", "share", "share of a reply's words that the user's last turn has", artifact=False)
def _echo(history: Sequence[Turn], reply: str) -> float:
    said = text.words(reply)
    last = set(text.words(history[-1]["content"])) if history else set()
    return sum(word in last for word in said) / len(said) if said else 0.0


@feature("markdown", "binary", "has Markdown: a heading, **bold**, code, a link or a table")
def _markdown(history: Sequence[Turn], reply: str) -> float:
    return bool(
        re.search(r"^#{1,6} |\*\*[^*\n]+\*\*|`[^`\n]+`|\[[^\]\n]+\]\([^)\n]+\)|^\|.*\|$", reply, re.MULTILINE)
    )


@feature("questions", "count", "question marks", artifact=False)
def _questions(history: Sequence[Turn], reply: str) -> float:
    return text.questions(reply)


@feature("self_reference", "share", "share of a reply's words that are I, me, my, mine or myself")
def _self_reference(history: Sequence[Turn], reply: str) -> float:
    said = text.words(reply)
    own = sum(re.fullmatch(r"(?:i(?:'[a-z]+)?|me|my|mine|myself)", word) is not None for word in said)
    return own / len(said) if said else 0.0


@feature("repetition", "share", "share of a reply's three-word runs that it has said before")
def _repetition(history: Sequence[Turn], reply: str) -> float:
    said = text.words(reply)
    runs = [tuple(said[i : i + 3]) for i in range(len(said) - 2)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@feature("repeats_itself", "binary", "repeats a sentence of an earlier reply")
def _repeats_itself(history: Sequence[Turn], reply: str) -> float:
    earlier = " ".join(
        " ".join(text.words(turn["content"])) for turn in history if turn["role"] == "assistant"
    )
    parts = (text.words(part) for part in re.split(r"[.!?…\n]+", reply))
    return any(len(part) >= 4 and " ".join(part) in earlier for part in parts)
