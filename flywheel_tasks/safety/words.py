"""Word lists: a text with a listed word or phrase is harmful. The default; it needs no model and misses a lot."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flywheel_tasks.privacy.folding import fold
from flywheel_tasks.safety.classifier import BLOCKED, SafetyClassifier, SafetyError, Scores
from flywheel_tasks.storage.fast_yaml import load_yaml

_CATEGORY = re.compile(r"[a-z][a-z0-9_]*")


def read_word_lists(folder: Path) -> dict[str, list[str]]:
    """Read every ``*.yaml`` of a folder: categories, each a list of words and phrases.

    Args:
        folder: of the lists; those of one category in several files are put together.

    Raises:
        SafetyError: there is no list, or a file is not of that form.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.yaml")):
        for category, words in read_word_list(path).items():
            found.setdefault(category, []).extend(words)
    if not any(found.values()):
        raise SafetyError(f"{folder}: there is no word list (*.yaml), so nothing could be found unsafe")
    return found


def read_word_list(path: Path) -> dict[str, list[str]]:
    """Read one file: categories, each a list of words and phrases; a last ``*`` stands for any ending of the word.

    Raises:
        SafetyError: the file is not of that form.
    """
    found: dict[str, list[str]] = {}
    try:
        document = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SafetyError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        raise SafetyError(f"{path}: expected categories, each with a list of words")
    for category, words in document.items():
        if not isinstance(category, str) or not _CATEGORY.fullmatch(category):
            raise SafetyError(f"{path}: {category!r} is no name for a category (a-z, 0-9, _)")
        if not isinstance(words, list) or not all(isinstance(w, str) and w.strip(" *") for w in words):
            raise SafetyError(f"{path}: {category}: expected a list of words that are not blank")
        found[category] = words
    return found


def plain(text: str) -> str:
    """A text as words are searched in it: look-alikes, case and spacing made plain."""
    return " ".join(fold(text).text.casefold().split())


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    longest = sorted({plain(word) for word in words}, key=lambda word: (-len(word), word))
    return re.compile(r"(?<!\w)(?:" + "|".join(map(one_word, longest)) + r")(?!\w)")


def one_word(word: str) -> str:
    """A word or phrase as a pattern; a lone ``*`` is no word."""
    stem = word.removesuffix("*")
    return re.escape(stem) + r"\w*" if stem and stem != word else re.escape(word)


class WordLists:
    """Scores 1 for a category of which a text has a whole word or phrase, in any case and spacing; else 0.

    Args:
        lists: category to words.
    """

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        self._patterns = {category: _pattern(words) for category, words in lists.items() if words}

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        """See :class:`flywheel_tasks.safety.classifier.SafetyClassifier`."""
        return [
            {
                category: float(pattern.search(searched) is not None)
                for category, pattern in self._patterns.items()
            }
            for searched in map(plain, texts)
        ]


class BlockedWords:
    """Scores of another classifier, and 1 (the highest score there is) for ``blocked`` where a text has such a word.

    Args:
        classifier: judges the texts.
        words: whole words and phrases, as of :class:`WordLists`.
    """

    def __init__(self, classifier: SafetyClassifier, words: Sequence[str]) -> None:
        self._classifier, self._words = classifier, WordLists({BLOCKED: words})

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        """See :class:`flywheel_tasks.safety.classifier.SafetyClassifier`."""
        answers = self._classifier.classify(texts)
        if len(answers) != len(texts):
            return answers  # whoever asked notices, and stops
        listed = self._words.classify(texts)
        return [_higher(scores, found) for scores, found in zip(answers, listed, strict=True)]


def _higher(scores: Any, listed: Scores) -> Any:
    """The higher score of each category; a text without a usable score has none because no word was found, too."""
    if not isinstance(scores, Mapping) or not scores:
        return scores
    return {**scores, **{category: score for category, score in listed.items() if score > 0}}
