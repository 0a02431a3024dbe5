"""What an annotator gets and gives: kinds of tasks, questions, rules of a card, and the error of this package."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import orjson

# Purpose of a task, and the split its prompts come from.
SPLIT_OF = {"reward_train": "reward_train", "reward_heldout": "reward_heldout", "policy": "policy_train"}
GOLD = "gold"  # purpose of a task whose answers are known
VIOLATES_CARD = "violates_card"


class AnnotationError(ValueError):
    """A batch or its labels cannot be used; the message names the file, the line and the rule."""


class Question(TypedDict):
    """A question about one reply.

    Attributes:
        name: its key in a label's answers.
        text: as an annotator reads it.
        choices: the possible answers; None where it is yes or no.
    """

    name: str
    text: str
    choices: list[str] | None


# The first two are asked in every generation (paper, section on annotation); the third steers the rewrites.
ALWAYS_ASKED = (
    Question(
        name="false_refusal",
        text="Does it refuse, or step out of character, without need (false refusal)?",
        choices=None,
    ),
    Question(
        name="templated",
        text="Is it templated: a stock phrase or pattern that keeps coming back?",
        choices=None,
    ),
    Question(name=VIOLATES_CARD, text="Does it break one of the card's instructions?", choices=None),
)
QUESTIONS = tuple(question["name"] for question in ALWAYS_ASKED)


def questions(extra: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions of a batch: those always asked, then the team's own.

    Args:
        extra: ``name``, ``text`` and, for other answers than yes and no, ``choices``.
    """
    own = [
        Question(
            name=row["name"], text=row["text"], choices=list(row["choices"]) if row.get("choices") else None
        )
        for row in extra
    ]
    return [*(Question(**question) for question in ALWAYS_ASKED), *own]


def rules_of(card: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a reply may violate, as steerability tasks list it: the card's instructions, then its traits.

    Returns:
        rows of ``rule_id`` (``instruction-1`` ...) and ``text``.
    """
    return [
        {"rule_id": f"{kind}-{number}", "text": text}
        for kind, texts in (("instruction", card["instructions"]), ("trait", card["traits"]))
        for number, text in enumerate(texts, start=1)
    ]


def short_id(*parts: object) -> str:
    """A stable id of 16 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def id_of_task(
    key: str, card: Mapping[str, Any], history: Sequence[Mapping[str, Any]], shown: Sequence[str]
) -> str:
    """A task's id, made of what annotators see of it: labels of other replies name a task that is not in the batch.

    Args:
        key: what the task is for, and of which prompt.
        card: its row.
        history: the turns before the reply.
        shown: the replies in the order shown.
    """
    seen = orjson.dumps([card, history, shown], option=orjson.OPT_SORT_KEYS)
    return f"t-{short_id(key, seen.decode())}"


def texts_of(task: Mapping[str, Any]) -> dict[str, str]:
    """The candidates' texts by id, in the order shown."""
    return {candidate["candidate_id"]: candidate["text"] for candidate in task["candidates"]}


def places(ranking: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Mid-ranks (0 is best) of a ranking whose entries are candidates or groups of equal ones.

    Args:
        ranking: best first; ``["a", ["b", "c"]]`` gives a 0 and b and c 1.5.
    """
    found: dict[str, float] = {}
    for entry in ranking:
        group = [entry] if isinstance(entry, str) else list(entry)
        found |= dict.fromkeys(group, len(found) + (len(group) - 1) / 2)
    return found
