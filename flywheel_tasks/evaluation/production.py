"""Production metrics of replies, by rules (paper, offline evaluation; definitions in docs/evaluation.md).

What rules can't tell (preachy tone, cooperation, sentiment, safety) is not guessed at here.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation import intervals
from flywheel_tasks.evaluation.instructions import InstructionCheck, checks, unchecked
from flywheel_tasks.style import text

NGRAM_WORDS = 6
TEMPLATE_SHARE = 0.05
TEMPLATE_MIN_PROMPTS = 3
WALL_WORDS = 60

SHARES = (
    "false_refusal",
    "breaks_character",
    "templated",
    "wall_of_text",
    "list",
    "emoji",
    "cut_off",
    "empty",
    "instruction_following",
    "instruction_violation",
)
MEANS = ("words", "tokens")


@dataclass(frozen=True)
class Answered:
    """One reply with what it answers.

    Attributes:
        prompt_id: of the prompt; several replies may share it.
        user_id: whose prompt it is: rows of one user are one cluster of the intervals.
        card: the character.
        history: turns, ending with the user's.
        reply: the text.
        tokens: its length in the policy's tokens.
    """

    prompt_id: str
    user_id: str
    card: Card
    history: Sequence[Turn]
    reply: str
    tokens: int


_ASSIST = (
    r"(?:help|assist|provide|answer|discuss|fulfil+|comply|continue|engage|generate|create|support|participate|"
    r"respond|share|offer|give you|do that|talk about|have (?:conversations|discussions|personal))"
)
_UNABLE = (
    r"(?:can(?: ?not|'t)|could(?: not|n't)|won't be able to|am (?:not able|unable) to|am not capable of)"
)
_MACHINE = (
    r"(?:an? )?(?:ai\b|a\.i\.|artificial intelligence|(?:large )?language model|chat ?bot|virtual assistant)"
)
_REFUSAL = re.compile(
    rf"\bi {_UNABLE} (?:\w+ )?{_ASSIST}"
    rf"|\bi'm (?:not able|unable) to (?:\w+ )?{_ASSIST}"
    rf"|\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,60}}\bi {_UNABLE} "
    r"(?!wait|believe|imagine|stop|stand|hear|see\b)"
    rf"|\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,60}}\bi'm (?:not able|unable) to\b"
    rf"|\bas (?:an? )?{_MACHINE}[^.!?]{{0,80}}\b(?:{_UNABLE}|don't|do not|lack)\b"
    rf"|\bi'm (?:just |only )?{_MACHINE}[^.!?]{{0,80}}\b(?:{_UNABLE}|don't|do not|lack)\b"
    r"|\b(?:against|violates?) (?:my|the|our) (?:guidelines|policy|policies|programming)\b"
    r"|\bi must (?:respectfully )?(?:decline|refuse)\b",
    re.IGNORECASE,
)
_BREAKS_CHARACTER = re.compile(
    rf"\bas (?:an? )?{_MACHINE}|\bi(?:'m| am) (?:just |only )?{_MACHINE}"
    r"|\bi(?:'m| am) (?:just |only )?(?:an? |your )(?:\w+ )?assistant\b",
    re.IGNORECASE,
)
_TEMPLATES = re.compile(
    r"\bhow (?:can|may) i (?:help|assist)(?: you)?\b|\bi'?m here to (?:help|assist|support)\b"
    r"|\bfeel free to (?:ask|share|let me know|reach out)\b|\bis there (?:any|some)thing (?:else )?"
    r"(?:specific )?(?:i can|you)"
    r"|\bi(?:'d| would) be (?:happy|glad|delighted) to (?:help|assist)\b|\bi hope this helps\b"
    r"|\bit'?s (?:great|nice|wonderful) to (?:hear|meet|chat)\b|\bwhat can i (?:do for|help) you\b",
    re.IGNORECASE,
)


def false_refusal(reply: str) -> bool:
    """Whether a reply refuses. The prompts passed the safety filter, so a refusal of one is a false one."""
    return bool(_REFUSAL.search(text.straight(reply)))


def breaks_character(reply: str) -> bool:
    """Whether a reply calls itself an AI, a model or an assistant."""
    return bool(_BREAKS_CHARACTER.search(text.straight(reply)))


def wall_of_text(reply: str) -> bool:
    """Whether a paragraph has more than ``WALL_WORDS`` words."""
    return any(len(text.words(paragraph)) > WALL_WORDS for paragraph in reply.splitlines())


def _ngrams(value: str) -> set[tuple[str, ...]]:
    found = text.words(value)
    return {tuple(found[i : i + NGRAM_WORDS]) for i in range(len(found) - NGRAM_WORDS + 1)}


def templated(rows: Sequence[Answered]) -> list[bool]:
    """Whether each reply has a phrase that recurs over the replies of one policy, or a known stock phrase.

    A phrase is ``NGRAM_WORDS`` words in a row. It recurs when replies to at least ``TEMPLATE_SHARE`` of the
    prompts (and to at least ``TEMPLATE_MIN_PROMPTS``) have it; where the card or the history has it too, it
    is not counted.

    Args:
        rows: all evaluated replies of one policy.
    """
    prompts_with: dict[tuple[str, ...], set[str]] = defaultdict(set)
    own: list[set[tuple[str, ...]]] = []
    for row in rows:
        given = "\n".join([row.card.system_prompt(), *(turn["content"] for turn in row.history)])
        own.append(_ngrams(row.reply) - _ngrams(given))
        for ngram in own[-1]:
            prompts_with[ngram].add(row.prompt_id)
    prompts = len({row.prompt_id for row in rows})
    limit = max(TEMPLATE_MIN_PROMPTS, math.ceil(TEMPLATE_SHARE * prompts))
    recurring = {ngram for ngram, ids in prompts_with.items() if len(ids) >= limit}
    return [
        bool(ngrams & recurring) or bool(_TEMPLATES.search(text.straight(row.reply)))
        for row, ngrams in zip(rows, own, strict=True)
    ]


_ROW: dict[str, Callable[[str], bool]] = {
    "false_refusal": false_refusal,
    "breaks_character": breaks_character,
    "wall_of_text": wall_of_text,
    "list": text.has_list,
    "emoji": lambda reply: text.emoji_count(reply) > 0,
    "cut_off": text.cut_off,
    "empty": lambda reply: not reply.strip(),
}


def measure(rows: Sequence[Answered]) -> list[dict[str, float | None]]:
    """All metrics of each reply of one policy: 0 or 1, a share or a count; None where one does not apply.

    Args:
        rows: all evaluated replies of one policy ("templated" looks at them together).
    """
    by_card: dict[Card, list[InstructionCheck]] = {row.card: checks(row.card) for row in rows}
    recurring = templated(rows)
    measured: list[dict[str, float | None]] = []
    for row, template in zip(rows, recurring, strict=True):
        values: dict[str, float | None] = {name: float(test(row.reply)) for name, test in _ROW.items()}
        obeyed = [check.obeyed(row.reply) for check in by_card[row.card]]
        values["templated"] = float(template)
        values["instruction_following"] = sum(obeyed) / len(obeyed) if obeyed else None
        values["instruction_violation"] = float(not all(obeyed)) if obeyed else None
        values["words"] = float(len(text.words(row.reply)))
        values["tokens"] = float(row.tokens)
        measured.append(values)
    return measured


def summarise(rows: Sequence[Answered]) -> dict[str, intervals.Estimate]:
    """Every metric over the replies of one policy, with its 95% interval (clustered by user).

    Args:
        rows: all evaluated replies of one policy.
    """
    measured = measure(rows)
    summary: dict[str, intervals.Estimate] = {}
    for name in (*SHARES, *MEANS):
        present = [(values[name], row.user_id) for values, row in zip(measured, rows, strict=True)]
        kept: list[tuple[float, Hashable]] = [(value, user) for value, user in present if value is not None]
        estimate = intervals.share if name in SHARES else intervals.mean
        summary[name] = estimate([value for value, _ in kept], [user for _, user in kept])
    return summary


def instruction_coverage(cards: Mapping[str, Card]) -> dict[str, int]:
    """How many instruction sentences of the evaluated cards code checks, and how many it can't.

    Args:
        cards: by id.
    """
    total = sum(len(card.instructions) for card in cards.values())
    not_checked = sum(len(unchecked(card)) for card in cards.values())
    return {"checked": total - not_checked, "unchecked": not_checked}
