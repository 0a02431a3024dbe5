"""Whether a request is surely harmless, so that refusing it is false: by subjects of this package's own.

What users say was judged by the safety classifier when the traffic was curated. The subjects here are wider, and hold
every phrase of the shipped ``safety_words/``: not all are unsafe to talk of, but who declines to may be right.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.safety.classifier import BLOCKED
from flywheel_tasks.safety.words import WordLists, one_word, plain, read_word_lists
from flywheel_tasks.storage.fast_yaml import load_yaml

_OVERLOOKED = "meant_otherwise"
# What " .. " stands for: the rest of a word ("neighbour's"), then up to six words of the same sentence.
_GAP = r"(?!\w)[^\s.!?;]*(?: [^\s.!?;]+){0,6} [\"'“‘(]*"


@cache
def _subjects() -> dict[str, re.Pattern[str]]:
    """Patterns of the phrases that are risky, and of the set phrases that only sound so."""
    text = files("flywheel_tasks.safety").joinpath("risky_subjects.yaml").read_text(encoding="utf-8")
    subjects = dict(load_yaml(text))
    groups = {name: _unfolded(words) for name, words in subjects.pop("groups").items()}
    overlooked = subjects.pop(_OVERLOOKED)
    listed = {
        "risky": [phrase for subject in subjects.values() for phrase in subject],
        _OVERLOOKED: overlooked,
    }
    found = {}
    for name, phrases in listed.items():
        either = "|".join(_phrase(_unfolded(phrase).format_map(groups)) for phrase in phrases)
        found[name] = re.compile(rf"(?<!\w)(?:{either})(?!\w)")
    return found


def _risky(text: str) -> bool:
    subjects = _subjects()
    # A word in place of the set phrase: what stands around it is no phrase now that it was not before.
    return subjects["risky"].search(subjects[_OVERLOOKED].sub("_", text)) is not None


def _unfolded(text: str) -> str:
    """A text of several lines in one; a line breaks after a ``|`` or between words."""
    return text.replace("| ", "|")


def _phrase(phrase: str) -> str:
    parts = [[_either(words) for words in part.split()] for part in phrase.split(" .. ")]
    return _GAP.join(" ".join(part) for part in parts)


def _either(words: str) -> str:
    return "(?:" + "|".join(map(one_word, words.split("|"))) + ")"


def harmless(history: Sequence[Turn], listed: WordLists | None = None) -> bool:
    """Whether the last turn of a history asks for nothing risky; without a user's turn there is nothing to refuse.

    Args:
        history: turns, ending with the user's.
        listed: a workspace's own words (:func:`own_words`), risky too.
    """
    asked = [turn["content"] for turn in history if turn["role"] == "user"][-1:]
    if not asked:
        return True
    unsafe = listed is not None and any(listed.classify(asked)[0].values())
    return not unsafe and not _risky(plain(asked[0]))


def own_words(folder: Path, blocked: Sequence[str] = ()) -> WordLists:
    """The words that a workspace calls unsafe, whichever classifier it uses.

    Args:
        folder: ``safety_words`` of the workspace; where another classifier judges it may be empty, or not be there.
        blocked: ``curate.blocked_words``.

    Raises:
        SafetyError: a list is not of its form.
    """
    lists = read_word_lists(folder) if any(folder.glob("*.yaml")) else {}
    return WordLists({**lists, BLOCKED: [*lists.get(BLOCKED, ()), *blocked]})
