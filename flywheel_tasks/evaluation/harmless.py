"""Whether a request is harmless, so that refusing it is false. Only what the list of risky subjects names is not."""

from collections.abc import Sequence

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.evaluation.wording import pattern_of
from flywheel_tasks.style.text import straight


def harmless(history: Sequence[Turn]) -> bool:
    """Whether the last turn of a history asks for nothing risky; without a user's turn there is nothing to refuse.

    Args:
        history: turns, ending with the user's.
    """
    asked = [turn["content"] for turn in history if turn["role"] == "user"]
    return not asked or pattern_of("risky").search(straight(asked[-1])) is None
