"""What an annotator gets and gives: the questions, the purposes, and the error of this package."""

import hashlib
from collections.abc import Mapping
from typing import Any

QUESTIONS = ("false_refusal", "templated", "violates_card")
# Purpose of a task, and the split its prompts come from.
SPLIT_OF = {"reward_train": "reward_train", "reward_heldout": "reward_heldout", "policy": "policy_train"}


class AnnotationError(ValueError):
    """A batch or its labels cannot be used; the message names the file, the line and the rule."""


def short_id(*parts: object) -> str:
    """A stable id of 16 hexadecimal digits."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def texts_of(task: Mapping[str, Any]) -> dict[str, str]:
    """The candidates' texts by id."""
    return {candidate["candidate_id"]: candidate["text"] for candidate in task["candidates"]}
