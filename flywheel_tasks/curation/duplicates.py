"""What a prompt says, as a key and as a text: equal keys are exact duplicates, the text is embedded."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def normal_key(row: Row) -> tuple[str, ...]:
    """Card and history without case and spacing: equal keys are exact duplicates."""
    return (
        row["card_id"],
        *(f"{turn['role']}:{' '.join(turn['content'].casefold().split())}" for turn in row["history"]),
    )


def prompt_text(row: Row, card_name: str) -> str:
    """What is embedded: the character's name, the turn before the last, and the last user turn."""
    return "\n".join([card_name, *(turn["content"] for turn in row["history"][-2:])])
