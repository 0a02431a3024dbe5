"""Limits on a count, read from English: "at most twenty words", "exactly one question"."""

import re
from dataclasses import dataclass

_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
)
_TENS = {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
_NUMBERS = (
    {word: value for value, word in enumerate(_ONES)} | _TENS | {"hundred": 100, "dozen": 12, "couple": 2}
)
_NUMBER_WORD = "|".join(sorted(_NUMBERS, key=len, reverse=True))
_SPELLED = re.compile(rf"\b(?:(?:a|one) )?({_NUMBER_WORD})(?:[- ]({'|'.join(_ONES[1:10])}))?\b(?: of\b)?")


@dataclass(frozen=True)
class Limit:
    """Bounds on a count, both inclusive; None is no bound."""

    low: int | None = None
    high: int | None = None

    def holds(self, count: int) -> bool:
        """Whether the count is within the bounds."""
        return (self.low is None or count >= self.low) and (self.high is None or count <= self.high)


def digits(text: str) -> str:
    """Lower-case text with the numbers from zero to ninety-nine in digits ("twenty-five" becomes "25")."""

    def spell(match: re.Match[str]) -> str:
        first, second = match.group(1), match.group(2)
        if second is None:
            return str(_NUMBERS[first])
        if first in _TENS:
            return str(_TENS[first] + _NUMBERS[second])
        return match.group()

    return _SPELLED.sub(spell, text)


_AFTER = r"(?: \w+){0,2}? "  # "at most 20 short, plain words"
_FORMS: tuple[tuple[str, str], ...] = (
    ("between", r"(?:between )?(\d+) (?:and|to|or) (\d+){a}{noun}"),
    ("between", r"(\d+) ?- ?(\d+){a}{noun}"),
    (
        "high",
        r"(?:at most|no more than|not more than|never more than|more than|up to|(?:a )?max(?:imum)?(?: of)?"
        r"|within|limit\w* (?:\w+ ){0,3}to"
        r"|(?:(?:do|must|should|may) not|(?:do|must|should|ca)n't|never|cannot) (?:exceed|go over|use more than)"
        r"|no longer than|longer than|stay (?:at|within)|cap\w* (?:\w+ ){0,3}at) (\d+){a}{noun}",
    ),
    ("high", r"(\d+){a}{noun} (?:or|and) (?:fewer|less|under|shorter)"),
    ("high", r"(\d+){a}{noun} (?:max\b|maximum|at (?:the )?most|tops)"),
    ("below", r"(?:under|fewer than|less than|below|shorter than) (\d+){a}{noun}"),
    ("low", r"(?:at least|no fewer than|no less than|not less than|a minimum of|minimum) (\d+){a}{noun}"),
    ("low", r"(\d+){a}{noun} or more"),
    ("above", r"(?:over|above) (\d+){a}{noun}"),
    (
        "exact",
        r"(?:exactly|precisely|only|just|in|use|put|add|with|of|write|contain|include|have|ask) "
        r"(\d+){a}{noun}",
    ),
)
_NEGATIVE = r"(?:never|no|not|don't|without|avoid|cannot|can't|must not|mustn't|shouldn't|nothing)"


def limit(text: str, noun: str) -> Limit | None:
    """The limit that a text puts on how many of a thing there are.

    Args:
        text: an instruction, lower case, straight quotes, numbers in digits (:func:`digits`).
        noun: a regular expression of the counted thing, such as ``words?``.

    Returns:
        the limit, or None where none is understood.
    """
    text = re.sub(r"\b(?:a|one|1) single\b", "1", text)
    text = re.sub(r"[,()]", "", text)
    for kind, form in _FORMS:
        pattern = form.replace("{a}", _AFTER).replace("{noun}", rf"(?:{noun})\b")
        match = re.search(r"\b" + pattern, text)
        if match is None:
            continue
        numbers = [int(group) for group in match.groups()]
        found = _limit(kind, numbers, text[: match.start()], match.group())
        if found is not None:
            return found
    return None


def _limit(kind: str, numbers: list[int], before: str, matched: str) -> Limit | None:
    negated = re.search(rf"\b{_NEGATIVE}\b[\w' ]*$", before) is not None
    if matched.startswith(("more than", "longer than")) and not negated:
        return Limit(low=numbers[0] + 1)
    if kind == "between":
        return Limit(low=min(numbers), high=max(numbers))
    if kind == "high":
        return Limit(high=numbers[0])
    if kind == "below":
        return Limit(low=numbers[0]) if negated else Limit(high=numbers[0] - 1)
    if kind == "low":
        return Limit(low=numbers[0])
    if kind == "above":
        return Limit(high=numbers[0]) if negated else Limit(low=numbers[0] + 1)
    return None if negated else Limit(low=numbers[0], high=numbers[0])
