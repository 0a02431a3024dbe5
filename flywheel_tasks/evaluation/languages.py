"""Which language a reply is in: by its script, or by the commonest words of seven languages."""

import re

from flywheel_tasks.evaluation.wording import words_of
from flywheel_tasks.style.text import words

_SCRIPTS = {
    "russian": r"[а-яё]",
    "ukrainian": r"[а-яіїєґ]",
    "greek": r"[α-ωάέήίόύώ]",
    "japanese": r"[ぁ-んァ-ヶ一-龯]",
    "chinese": r"[一-龯]",
    "korean": r"[가-힣]",
    "arabic": r"[ء-ي]",
    "hebrew": r"[א-ת]",
    "hindi": r"[ऀ-ॿ]",
    "thai": r"[ก-๙]",
}
_BY_WORDS = ("english", "french", "spanish", "german", "italian", "portuguese", "dutch")
LANGUAGES = (*_BY_WORDS, *_SCRIPTS)


def is_in(reply: str, language: str) -> bool:
    """Whether a reply is in a language.

    Args:
        reply: not empty.
        language: one of :data:`LANGUAGES`. Those in a script of their own need half of the letters in it; the others
            at least as many of their own commonest words as any other has, and one.
    """
    if language in _SCRIPTS:
        letters = [character for character in reply.lower() if character.isalpha()]
        own = sum(re.match(_SCRIPTS[language], letter) is not None for letter in letters)
        return bool(letters) and own / len(letters) >= 0.5
    said = words(reply)
    counts = {name: sum(word in words_of(f"language_{name}") for word in said) for name in _BY_WORDS}
    return counts[language] > 0 and counts[language] == max(counts.values())
