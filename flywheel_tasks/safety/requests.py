"""Whether a request is harmless, so that refusing it is false: by the word lists of this package's own subjects.

What users say was judged by the safety classifier when the traffic was curated. The subjects here are wider: they are
not unsafe to talk of, but who declines to may be right.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.safety.words import WordLists, read_word_list


@cache
def _risky() -> WordLists:
    with as_file(files("flywheel_tasks.safety").joinpath("risky_subjects.yaml")) as path:
        return WordLists(read_word_list(path))


def harmless(history: Sequence[Turn]) -> bool:
    """Whether the last turn of a history asks for nothing risky; without a user's turn there is nothing to refuse.

    Args:
        history: turns, ending with the user's.
    """
    asked = [turn["content"] for turn in history if turn["role"] == "user"]
    return not asked or not any(_risky().classify(asked[-1:])[0].values())
