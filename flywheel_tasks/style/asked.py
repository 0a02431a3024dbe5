"""Which style features a card asks for: there, more of one is obedience, and no artifact."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.instructions import InstructionCheck, instruction_checks
from flywheel_tasks.evaluation.polarity import NOT
from flywheel_tasks.evaluation.templates import said_in
from flywheel_tasks.style import text
from flywheel_tasks.style.features import Feature
from flywheel_tasks.style.found import OPENING, OPENING_WORDS, TEMPLATE

# A reply that has nothing a card could ask for: a check that it fails demands something, others only forbid or limit.
_NOTHING = "mm"
# An instruction that limits something asks for none of it.
_LESS = (
    r"sparing(?:ly)?|rarely|seldom|hardly|few(?:er)?|less|little|minim\w+|limit\w*|avoid\w*|without|instead of|over"
    r"|rather than|easy on|only (?:when|if|where)|at most|no more than|keep (?:\w+ ){0,3}to"
)
_NEGATION = re.compile(rf"\b(?:{NOT}|{_LESS})\b", re.IGNORECASE)
# What governs the name of a thing that is asked for: "use plenty of emoji", but not "you keep a bucket list".
_WANTED = (
    r"(?:uses?|using|adds?|includes?|put|writes?|speak|talk|reply|replies|answers?|respond|ends?|starts?|begin|open|close"
    r"|sprinkle|decorate|format|formatted|loves?|likes?|plenty|lots|full|with|in|show|always|give|make)"
)


class _Demand(NamedTuple):
    """How cards ask for a feature.

    Attributes:
        kinds: of instruction checks that ask for it where they demand something.
        named: a wish and what names the thing, in an instruction of which code can check none of these.
    """

    kinds: frozenset[str]
    named: re.Pattern[str]


def _demand(kinds: Collection[str], named: str) -> _Demand:
    return _Demand(frozenset(kinds), re.compile(rf"\b{_WANTED}\b[^.!?;:]*?\b(?:{named})\b", re.IGNORECASE))


# By registered feature. Openings, interjections and other words are asked for as phrases; see :func:`_has_it`.
DEMANDS: Mapping[str, _Demand] = {
    "emoji": _demand(("emoji", "start_emoji", "end_emoji"), r"emojis?|emoticons?|kaomojis?|smileys?"),
    "list": _demand(
        ("lists",), r"lists|(?:numbered|bulleted|bullet|bullet[- ]point) list|bullets|bullet[- ]points?"
    ),
    "exclamation": _demand(("exclamation_marks", "end_exclamation"), r"exclamations?"),
    "action": _demand((), r"asterisks?|stage directions?|actions (?:in|between|with) (?:asterisks|stars)"),
    "capitals": _demand(("upper_case",), r"capitals|capital letters|caps|upper[- ]?case"),
    "ellipsis": _demand(("ellipses", "end_ellipsis"), r"ellips[ei]s|(?:three|trailing) dots"),
    "line_breaks": _demand(("line_breaks", "lines"), r"line[- ]?breaks?|new ?lines?|short lines|paragraphs"),
    "markdown": _demand((), r"markdown|bold(?= (?:text|type|letters|words|print))|headings?|(?<=in )bold"),
}


def asked_for(card: Card, features: Mapping[str, Feature]) -> frozenset[str]:
    """The artifacts that a card asks for.

    One is asked for where an instruction demands it by a rule that code can check ("always end with an emoji"), where a
    phrase that must be said has it ("start with 'Oh'"), and where an instruction that code cannot check wants it
    ("use plenty of emoji") and limits nothing ("use emoji sparingly"). "Use at most one emoji" demands none. A found
    template is asked for where the card says it.

    Args:
        card: of a reply.
        features: registered and found ones, by name.

    Returns:
        names of features.
    """
    return frozenset(name for name, feature in features.items() if _asks(card, feature))


def _asks(card: Card, feature: Feature) -> bool:
    if not feature.artifact:
        return False
    if feature.name.startswith(TEMPLATE):
        return said_in(feature.name.removeprefix(TEMPLATE), [card.system_prompt()])
    return any(_instruction_asks(instruction, feature) for instruction in card.instructions)


def _instruction_asks(instruction: str, feature: Feature) -> bool:
    found = instruction_checks(instruction)
    demanded = [check for check in found if not check.obeyed(_NOTHING)]
    if any(_has_it(feature, phrase) for check in demanded if (phrase := _phrase(check))):
        return True
    demand = DEMANDS.get(feature.name)
    if demand is None:
        return False
    if any(check.kind in demand.kinds for check in found):
        return any(check.kind in demand.kinds for check in demanded)
    return bool(demand.named.search(instruction)) and not _NEGATION.search(instruction)


def _phrase(check: InstructionCheck) -> str:
    """What must be said, in the card's letters; empty where the check is none of a phrase."""
    said = check.kind.partition(":")[2]
    place = check.instruction.lower().find(said)
    return check.instruction[place : place + len(said)] if said and place >= 0 else said


def _has_it(feature: Feature, phrase: str) -> bool:
    if not feature.name.startswith(OPENING):
        said_before: list[Turn] = [
            {"role": "assistant", "content": f"{phrase} {_NOTHING}"}
        ]  # as in every reply
        return feature.measure(said_before, f"{phrase} {_NOTHING}") > 0
    opening, said = feature.name.removeprefix(OPENING).split(), text.words(phrase)[:OPENING_WORDS]
    return bool(said) and opening[: len(said)] == said
