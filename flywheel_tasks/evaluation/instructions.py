"""Card instructions that code can check, found in their sentences by patterns.

The paper's metrics "instruction following" and "instruction violation" are judged here only where a rule of
the card can be counted or matched. A sentence no pattern understands is unchecked: it counts neither as
obeyed nor as broken. A condition ("if the user asks …") is never checked: code can't tell whether it holds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.counted import counted
from flywheel_tasks.evaluation.facts import facts
from flywheel_tasks.evaluation.languages import languages
from flywheel_tasks.evaluation.phrases_said import QUOTE, bare_words, quoted
from flywheel_tasks.evaluation.polarity import Test, left_open, unclear
from flywheel_tasks.evaluation.reply_form import endings, grammar, letters
from flywheel_tasks.style.text import NO_ABBREVIATION, straight, straight_quotes, words_unclear

# NFKC makes three characters of "…", capitals of "™" and a digit of "²".
_AS_WRITTEN = frozenset({"characters", "digits", "lower_case", "upper_case"})


@dataclass(frozen=True)
class InstructionCheck:
    """One checkable thing that an instruction asks for.

    Attributes:
        instruction: the card's sentence.
        kind: what is checked, such as ``words`` or ``end_question``.
        test: whether a non-empty reply does it.
    """

    instruction: str
    kind: str
    test: Test = field(repr=False, compare=False)

    def obeyed(self, reply: str) -> bool:
        """Whether a reply obeys; an empty reply obeys nothing."""
        read = straight_quotes if self.kind in _AS_WRITTEN else straight
        return bool(reply.strip()) and self.test(read(reply))

    def measures(self, reply: str) -> bool:
        """Whether code can tell: words in a script without spaces can't be counted."""
        return self.kind != "words" or not words_unclear(reply)


def obeyed(checks: Iterable[InstructionCheck], reply: str) -> list[bool]:
    """Whether a reply obeys each of the checks, those left out that cannot be measured on it.

    Args:
        checks: of a card's instructions.
        reply: the text.
    """
    return [check.obeyed(reply) for check in checks if check.measures(reply)]


def checks(card: Card) -> list[InstructionCheck]:
    """Everything code can check of a card's instructions, in the card's order."""
    return [check for instruction in card.instructions for check in instruction_checks(instruction)]


def share_kept(card: Card, reply: str) -> float | None:
    """Share (0 to 1) of a card's instructions that code can check and the reply obeys; None if code can check none."""
    kept = obeyed(checks(card), reply)
    return sum(kept) / len(kept) if kept else None


def share_seen_kept(card: Card, reply: str) -> float | None:
    """Share (0 to 1) of a card's instructions that code can check and sees kept; None if code can check none.

    To choose replies by: what cannot be measured on a reply counts as not kept, or the reply would be chosen for that.

    Args:
        card: the character.
        reply: the text.
    """
    found = checks(card)
    if not found:
        return None
    return sum(check.measures(reply) and check.obeyed(reply) for check in found) / len(found)


def unchecked(card: Card) -> list[str]:
    """The card's instructions of which code can check nothing."""
    return [instruction for instruction in card.instructions if not instruction_checks(instruction)]


def instruction_checks(instruction: str) -> list[InstructionCheck]:
    """What code can check of one instruction; "at most 20 words, no emoji" makes two checks.

    Args:
        instruction: a card's, one or more sentences.

    Returns:
        the checks, each of another kind; none where no pattern surely understands it.
    """
    if "<tool_call" in instruction:
        return []  # the quotes are of a tool's format
    original = straight(instruction)
    found: dict[str, Test] = {}
    for sentence in re.split(rf"(?<=[.!;]){NO_ABBREVIATION}\s+(?=[A-Z])", original):
        own_words = QUOTE.sub(' "" ', sentence)
        if unclear(own_words):
            continue
        finders = (counted, endings, letters, quoted, bare_words, languages, grammar, facts)
        for finder in (counted,) if left_open(own_words) else finders:
            for kind, test in finder(sentence).items():
                found.setdefault(kind, test)
    return [InstructionCheck(instruction, kind, test) for kind, test in found.items()]
