"""Tests of single card instructions: does this reply obey?"""

import re

import emoji

from flywheel_tasks.simulation.rules import Check
from flywheel_tasks.simulation.wording import emoji_count, sentences, words

_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)
KINDS = (
    "max_words",
    "max_sentences",
    "end_question",
    "no_question",
    "lowercase",
    "one_exclamation",
    "no_exclamation",
    "no_emoji",
    "one_emoji",
    "no_lists",
    "no_digits",
    "forbid_word",
    "mention",
    "start_word",
)


def _last_mark(text: str) -> str:
    bare = emoji.replace_emoji(text, "").rstrip().rstrip("\"'”’)*")
    return bare[-1:] if bare else ""


def _has_word(text: str, word: str) -> bool:
    """The word or its plural; a contraction counts as its first part ("I'm" holds "i")."""
    parts = {part for token in words(text) for part in (token, token.split("'")[0])}
    return word in parts or f"{word}s" in parts


def obeys(check: Check, text: str) -> bool:
    """Does a reply obey one instruction?

    Args:
        check: the instruction's check.
        text: the reply; an empty one obeys nothing.

    Raises:
        ValueError: the kind is unknown.
    """
    if not words(text):
        return False
    value = check.value
    match check.kind:
        case "max_words":
            return len(words(text)) <= int(value or 0)
        case "max_sentences":
            return len(sentences(text)) <= int(value or 0)
        case "end_question":
            return _last_mark(text) == "?"
        case "no_question":
            return "?" not in text
        case "lowercase":
            return text == text.lower()
        case "one_exclamation":
            return text.count("!") == 1
        case "no_exclamation":
            return "!" not in text
        case "no_emoji":
            return emoji_count(text) == 0
        case "one_emoji":
            return emoji_count(text) == 1
        case "no_lists":
            return _LIST_LINE.search(text) is None
        case "no_digits":
            return not any(char.isdigit() for char in text)
        case "forbid_word":
            return str(value) not in {part for w in words(text) for part in (w, w.split("'")[0])}
        case "mention":
            return _has_word(text, str(value))
        case "start_word":
            return words(text)[0] == value
    raise ValueError(f"unknown kind of instruction: {check.kind}")
