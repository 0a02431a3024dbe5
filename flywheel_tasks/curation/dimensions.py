"""What a prompt is counted under: the dimensions of constrained sampling."""

import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

OTHER = "(other)"
_DEPTHS = ((1, "1"), (2, "2"), (4, "3-4"), (8, "5-8"))
_LENGTHS = ((4, "0-4"), (9, "5-9"), (19, "10-19"), (49, "20-49"))
# Names of the Unicode character data to ISO 15924.
_SCRIPTS = {
    "LATIN": "Latn",
    "CYRILLIC": "Cyrl",
    "GREEK": "Grek",
    "ARABIC": "Arab",
    "HEBREW": "Hebr",
    "DEVANAGARI": "Deva",
    "BENGALI": "Beng",
    "TAMIL": "Taml",
    "THAI": "Thai",
    "HANGUL": "Hang",
    "HIRAGANA": "Jpan",
    "KATAKANA": "Jpan",
    "CJK": "Hani",
}


def _band(value: int, bands: Sequence[tuple[int, str]], beyond: str) -> str:
    place = bisect_left([edge for edge, _ in bands], value)
    return bands[place][1] if place < len(bands) else beyond


def depth_band(turn: int) -> str:
    """Band of the user's turn in the conversation: 1, 2, 3-4, 5-8, 9+."""
    return _band(turn, _DEPTHS, "9+")


def length_band(text: str) -> str:
    """Band of the last user turn's words: 0-4, 5-9, 10-19, 20-49, 50+."""
    return _band(len(text.split()), _LENGTHS, "50+")


def script(text: str) -> str:
    """Script of most letters as ISO 15924, ``Zzzz`` for another one, ``Zyyy`` without letters.

    A script stands in for the language: short chat turns are too short to tell languages of one script apart
    surely, and no language model is loaded for it. Japanese with any kana counts as ``Jpan``.
    """
    found = Counter(
        _SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], "Zzzz")
        for letter in text
        if letter.isalpha()
    )
    if not found:
        return "Zyyy"
    if found["Jpan"] and found["Hani"]:
        found["Jpan"] += found.pop("Hani")
    return min(found, key=lambda name: (-found[name], name))


def cohorts(users: Sequence[str], times: Iterable[datetime]) -> list[str]:
    """``returning`` for prompts of users who wrote on two or more days (UTC) of this traffic, else ``new``."""
    days: dict[str, set[int]] = defaultdict(set)
    for user, time in zip(users, times, strict=True):
        days[user].add(time.toordinal())
    return ["returning" if len(days[user]) > 1 else "new" for user in users]


def merge_rare(values: Sequence[str], most: int, named: Collection[str] = ()) -> list[str]:
    """Values with all but the ``most - 1`` commonest ones as ``(other)``, if there are more than ``most``.

    Args:
        values: of one dimension; those that are empty (the topic of a prompt that was filtered out) are no value
            and stay empty.
        most: distinct values of the result, those that are named not counted.
        named: values that stay in any case.
    """
    counts = Counter(value for value in values if value)
    if len(counts) <= most:
        return list(values)
    kept = {"", *named, *sorted(counts, key=lambda value: (-counts[value], value))[: most - 1]}
    return [value if value in kept else OTHER for value in values]
