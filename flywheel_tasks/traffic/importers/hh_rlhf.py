"""Preference transcripts (``chosen`` and ``rejected``) to preference pairs."""

import re
from pathlib import Path
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.traffic.importers.rows import (
    Imported,
    RowError,
    SkippedRow,
    read_objects,
    short_hash,
    text_field,
)

CARD = Card("hh-rlhf-assistant", "Assistant", (), ())
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def parse_transcript(text: str) -> list[Turn]:
    r"""Parse a transcript of ``\n\nHuman:`` and ``\n\nAssistant:`` turns.

    Returns:
        the turns; they start with the user, alternate, end with the assistant, and none is empty.

    Raises:
        ValueError: one of these does not hold (``args``: rule, detail).
    """
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        raise RowError("no_transcript", "does not start with Human: or Assistant:")
    turns: list[Turn] = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    for number, turn in enumerate(turns, start=1):
        if turn["role"] != ("user" if number % 2 else "assistant"):
            raise RowError("not_alternating", f"turn {number} is the {turn['role']}'s")
        if not turn["content"]:
            raise RowError("empty_turn", f"turn {number} says nothing")
    if turns[-1]["role"] != "assistant":
        raise RowError("no_reply", "the last turn is the user's")
    return turns


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = (
        parse_transcript(text_field(row, "chosen")),
        parse_transcript(text_field(row, "rejected")),
    )
    history = chosen[:-1]
    if history != rejected[:-1]:
        raise RowError("histories_differ", "chosen and rejected differ before the last reply")
    if chosen[-1] == rejected[-1]:
        raise RowError("equal_replies", "chosen and rejected are the same")
    said = [turn["content"] for turn in history]
    return {
        "pair_id": "hh-rlhf-" + short_hash(*said, chosen[-1]["content"], rejected[-1]["content"]),
        "prompt_id": "hh-rlhf-" + short_hash(*said),
        # The set names no people. Dialogues that open alike get one user, so that no split parts them.
        "user_id": "hh-rlhf-" + short_hash(said[0]),
        "source": "internal",
        "purpose": "reward_train",
        "card_id": CARD.card_id,
        "card_name": CARD.name,
        "traits": list(CARD.traits),
        "instructions": list(CARD.instructions),
        "history": history,
        "chosen": chosen[-1]["content"],
        "rejected": rejected[-1]["content"],
        "kind": "ranking",
        "agreement": 1.0,  # of one annotator with themselves: the set holds one choice a pair
        "reviews": 1,
        "simulated": False,
        "consensus": False,
        "one_review": 1.0,
        "chosen_policy": None,
        "rejected_policy": None,
    }


def read_hh_rlhf(path: Path) -> Imported:
    """Read preference transcripts (Bai et al., arXiv 2204.05862): JSON Lines of ``chosen`` and ``rejected``.

    Args:
        path: ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        preference pairs (:data:`flywheel_tasks.annotation.schemas.PAIRS`), with a neutral assistant card.

    Raises:
        ImportFormatError: the gzip is damaged.
    """
    pairs: dict[str, dict[str, Any]] = {}
    skipped: list[SkippedRow] = []
    for number, row in read_objects(path, skipped):
        try:
            pair = _pair(row)
            if pair["pair_id"] in pairs:
                raise RowError("repeated_pair", "an earlier line holds the same pair")
        except RowError as error:
            skipped.append(SkippedRow(str(path), number, *error.args))
            continue
        pairs[pair["pair_id"]] = pair
    return Imported(list(pairs.values()), skipped)
