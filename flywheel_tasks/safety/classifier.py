"""The interface of safety classifiers, and the one way to ask them.

A classifier gives each text a score in [0, 1] for each category of harm. A text is unsafe from the threshold on, and
also when it has no score, or one that is no such number: what was not judged is not safe. A classifier that cannot be
asked raises, which stops whoever asked.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flywheel_tasks.settings import Safety, Settings

UNSCORED = "unscored"
BLOCKED = "blocked"  # category of curate.blocked_words
Scores = Mapping[str, float]
Row = dict[str, Any]


class SafetyError(RuntimeError):
    """The classifier cannot be used or gave no usable answer; nothing that depends on it may go on."""


class SafetyClassifier(Protocol):
    """Judges texts."""

    def classify(self, texts: Sequence[str]) -> Sequence[Scores]:
        """Scores of each text by category, in the order given; 1 is surely harmful.

        Raises:
            SafetyError: no answer could be had.
        """


def open_classifier(settings: Safety, word_lists: Path, *, blocked: Sequence[str] = ()) -> SafetyClassifier:
    """The classifier of the section ``safety``.

    Args:
        settings: the section.
        word_lists: the folder ``safety_words`` of the workspace.
        blocked: further words, of the category ``blocked``, whatever else judges.

    Raises:
        SafetyError: it cannot be opened.
    """
    from flywheel_tasks.safety.words import BlockedWords, WordLists, read_word_lists

    if settings.classifier == "words":
        lists = read_word_lists(word_lists)
        return WordLists({**lists, BLOCKED: [*lists.get(BLOCKED, ()), *blocked]} if blocked else lists)
    model = _open_model(settings)
    return BlockedWords(model, blocked) if blocked else model


def classifier_of(settings: Settings, word_lists: Path) -> SafetyClassifier:
    """The classifier that every stage and the gateway ask: the section ``safety``, and ``curate.blocked_words``.

    Args and errors as :func:`open_classifier`; the settings are all of them.
    """
    return open_classifier(settings.safety, word_lists, blocked=settings.curate.blocked_words)


def _open_model(settings: Safety) -> SafetyClassifier:
    if settings.classifier == "local":
        from flywheel_tasks.safety.local import LocalClassifier

        return LocalClassifier(str(settings.model), settings.safe_labels, settings.batch_size)
    from flywheel_tasks.safety.endpoint import HttpClassifier

    return HttpClassifier(str(settings.url), settings.timeout_seconds, settings.retries, settings.batch_size)


def _category(scores: Any, threshold: float) -> str | None:
    if not isinstance(scores, Mapping) or not scores:
        return UNSCORED
    for score in scores.values():
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score) or not 0.0 <= score <= 1.0:
            return UNSCORED
    worst = max(scores, key=lambda name: (scores[name], name))
    return worst if scores[worst] >= threshold else None


def unsafe(classifier: SafetyClassifier, texts: Sequence[str], threshold: float) -> dict[str, str]:
    """The texts that are unsafe, with their worst category (``unscored`` if they have no usable score).

    Args:
        classifier: is asked about each distinct text that is not blank, once.
        texts: any texts.
        threshold: the score from which on a text is unsafe.

    Raises:
        SafetyError: the classifier cannot answer, or not about every text.
    """
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    if not distinct:
        return {}
    answers = classifier.classify(distinct)
    if len(answers) != len(distinct):
        raise SafetyError(
            f"the safety classifier was asked about {len(distinct)} texts and answered {len(answers)}"
        )
    found = {}
    for text, scores in zip(distinct, answers, strict=True):
        category = _category(scores, threshold)
        if category is not None:
            found[text] = category
    return found


def unsafe_prompts(
    rows: Sequence[Row], classifier: SafetyClassifier, threshold: float
) -> dict[str, tuple[str, str]]:
    """Prompts with an unsafe turn or reply: prompt id to the reason (``safety:<category>``) and where it is.

    Args:
        rows: prompts (``prompt_id``, ``history``, ``reply``).
        classifier: judges each text.
        threshold: of the section ``safety``.

    Raises:
        SafetyError: the classifier cannot answer.
    """
    texts = [turn["content"] for row in rows for turn in row["history"]]
    texts += [row["reply"] for row in rows if row["reply"]]
    found = unsafe(classifier, texts, threshold)
    reasons: dict[str, tuple[str, str]] = {}
    for row in rows:
        places = [(f"turn {n} of the history", turn["content"]) for n, turn in enumerate(row["history"])]
        for where, text in [*places, ("the reply", row["reply"] or "")]:
            if text in found:
                reasons[row["prompt_id"]] = (f"safety:{found[text]}", f"in {where}")
                break
    return reasons
