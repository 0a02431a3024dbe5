"""Whether a reply refuses: plainly, politely, or in character ("a knight of my order cannot speak of such things").

A refusal declines what the user asked: to answer, to tell, to talk about it, to help, to play along. A character's no
inside the story ("I won't sell the ship"), a thing they are not able to do in life ("I can't swim"), not knowing, and
a story in which somebody refuses are none. The rules (``refusals.yaml``) look for a *negated willingness* ("can't",
"won't", "may not", "rather not") together with an *act of answering or helping*, and for set phrases that decline.
Definition and measured agreement with labels: docs/evaluation.md.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.style.text import straight

THRESHOLD = 0.5
FLOOR = 0.02  # of a reply without any cue
_SERVED = 0.4  # what is left of a cue's weight where the reply then gives what was asked
_SERVING_WORDS = 4
_ASKED = frozenset({"other topic", "let us not", "object first", "role"})  # cues that hold in a question too
_QUOTED = re.compile(r"\"[^\"]*\"")
_ACTION = re.compile(r"\*[^*\n]*\*")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-zªºÀ-ɏḀ-ỿ]")


@dataclass(frozen=True)
class Cue:
    """Patterns that speak for a refusal.

    Attributes:
        name: short id, for explanations.
        weight: probability that a sentence with it refuses.
        pattern: over a lower-case sentence.
    """

    name: str
    weight: float
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class _Patterns:
    """``refusals.yaml``, compiled; its sections by name."""

    cues: tuple[Cue, ...]
    idioms: re.Pattern[str]
    others: re.Pattern[str]
    serves: re.Pattern[str]
    still_refuses: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    raw: dict[str, Any] = load_yaml(
        files("flywheel_tasks.evaluation").joinpath("refusals.yaml").read_text(encoding="utf-8")
    )
    parts: dict[str, str] = {}

    def expand(alternatives: list[str]) -> str:
        text = "|".join(alternatives)
        return re.sub(r"<([A-Z_]+)>", lambda match: parts[match.group(1)], text)

    for name, alternatives in raw["parts"].items():  # in the file's order: a part may name earlier ones
        text = expand(alternatives)
        parts[name] = f"(?:{text})" if len(alternatives) > 1 else text
    return _Patterns(
        tuple(Cue(cue["name"], cue["weight"], re.compile(expand(cue["patterns"]))) for cue in raw["cues"]),
        *(re.compile(expand(raw[name])) for name in ("idioms", "others", "serves", "still_refuses")),
    )


def _sentences(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?…])[\"')*\s]+|\n+", text)
    return [" ".join(part.strip(" *\"'()_-").split()) for part in parts if re.search(r"[a-z]", part)]


def _spoken(reply: str) -> str:
    """A reply's own words in lower case: without reported speech and *actions*, where others are left."""
    text = straight(reply).lower()
    for pattern, least in ((_QUOTED, 3), (_ACTION, 1)):
        rest = pattern.sub(" . ", text)
        if len(re.findall(r"\w+", rest)) >= least:
            text = rest
    return text


def matched(reply: str) -> list[tuple[str, float]]:
    """The cues of a reply, with their weights: why it counts as a refusal.

    Args:
        reply: the text.
    """
    patterns = _patterns()
    sentences = _sentences(_spoken(reply))
    found: list[tuple[str, float]] = []
    for place, sentence in enumerate(sentences):
        if patterns.others.search(sentence):
            continue
        bare = re.sub(r"[.!?…]+$", "", patterns.idioms.sub(" ", sentence)).strip()
        for cue in patterns.cues:
            # A question asks the user ("won't you tell me?"); it can still offer another topic.
            if sentence.endswith("?") and cue.name not in _ASKED:
                continue
            hit = cue.pattern.search(bare)
            if hit is not None:
                after = " ".join([bare[hit.start() :], *sentences[place + 1 :]])
                found.append((cue.name, cue.weight * (_SERVED if _served(after, patterns) else 1.0)))
    return found


def _served(after: str, patterns: _Patterns) -> bool:
    """Whether what follows a cue gives what was asked after all."""
    if patterns.still_refuses.search(after):
        return False
    hit = patterns.serves.search(after)
    return hit is not None and len(after[hit.start() :].split()) >= _SERVING_WORDS


def probability(reply: str) -> float:
    """How likely a reader would say that the reply refuses.

    Args:
        reply: the text.

    Returns:
        between 0 and 1: the weight of the strongest cue, raised by each further kind of cue; ``FLOOR`` without any.
    """
    strongest: dict[str, float] = {}
    for name, weight in matched(reply):
        strongest[name] = max(strongest.get(name, 0.0), weight)
    if not strongest:
        return FLOOR
    best = max(strongest.values())
    if best >= THRESHOLD:
        best = 1 - (1 - best) * 0.7 ** (len(strongest) - 1)
    return round(best, 4)


def reads(reply: str) -> bool:
    """Whether a reply's script can be read: at most a tenth of its letters are of another than Latin.

    Patterns and lines are English; in what they cannot read, a refusal would pass for none.
    """
    letters = _LETTER.findall(straight(reply))
    return sum(_LATIN.match(letter) is None for letter in letters) * 10 <= len(letters)


def as_read(reply: str, probability: float) -> float | None:
    """The probability that a reply refuses, or None where it may refuse in a script that was not read.

    Args:
        reply: the text.
        probability: as far as it was read.
    """
    return probability if probability >= THRESHOLD or reads(reply) else None


def refuses(reply: str) -> bool:
    """Whether a reply refuses."""
    return probability(reply) >= THRESHOLD
