"""Limits on a count, read from English: "at most twenty words", "exactly one question"."""

import re
from dataclasses import dataclass
from functools import cache

from flywheel_tasks.evaluation.polarity import ENDS, REPLY, STARTS, prohibited

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
_BELOW_TWENTY = {word: value for value, word in enumerate(_ONES)}
_DIGIT, _TENS_WORD = "|".join(_ONES[1:10]), "|".join(_TENS)
_BELOW_HUNDRED = (
    rf"(?:(?:{_TENS_WORD})(?:[- ](?:{_DIGIT}))?|{'|'.join(sorted(_ONES, key=len, reverse=True))})"
)
_TIMES = rf"(?:(?:an?|\d+|{_BELOW_HUNDRED})[- ])?"
# In "one hundred and two hundred" the two belongs to the second number.
_REST = rf"(?:(?: and)? {_BELOW_HUNDRED}\b(?![- ](?:hundred|thousand|dozen)))?"
_HUNDREDS = rf"{_TIMES}hundred\b{_REST}"
_SPELLED = re.compile(
    rf"(?<![\w.,])(?:(?:{_HUNDREDS} |{_TIMES})thousand\b(?:(?: and)? {_HUNDREDS}|{_REST})|{_HUNDREDS}"
    rf"|(?:half a |{_TIMES})dozen|(?:a |one )?couple|(?:a |one )?{_BELOW_HUNDRED})\b(?: of\b)?"
)


@dataclass(frozen=True)
class Limit:
    """Bounds on a count, both inclusive; None is no bound: without any, it binds no reply as a whole."""

    low: int | None = None
    high: int | None = None

    def holds(self, count: int) -> bool:
        """Whether the count is within the bounds."""
        return (self.low is None or count >= self.low) and (self.high is None or count <= self.high)


def digits(text: str) -> str:
    """Lower-case text with its numbers in digits: "twenty-five" becomes "25", "two hundred and ten" "210".

    Args:
        text: lower case.
    """
    return _SPELLED.sub(lambda match: str(_value(re.findall(r"\w+", match.group()))), text)


def _value(words: list[str]) -> int:
    """The number that its words add up to; "a", "and" and "of" add nothing."""
    total = part = 0
    for word in words:
        if word == "hundred":
            part = (part or 1) * 100
        elif word == "dozen":
            part = 6 if "half" in words else (part or 1) * 12
        elif word == "thousand":
            total, part = (part or 1) * 1000, 0
        elif word == "couple":
            part = 2
        elif word.isdecimal():
            part += int(word)
        else:
            part += _TENS.get(word, _BELOW_TWENTY.get(word, 0))
    return total + part


_UNIT = r"(?:sentences?|words?|lines?|paragraphs?|verses?|stanzas?|clauses?|bullets?)"
# "At most 20 short, plain words"; in "one emoji per sentence" the number is not of sentences.
# Of "2 million words" the number is not all; no digits stand between a number and what it counts.
_AFTER = rf"(?: (?!(?:{_UNIT}|per|an?|the|each|every|in|for|to|hundreds?|thousands?|[mb]illions?|\d+)\b)\w+){{0,2}}? "
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
        r"(?:exactly|precisely|only|just|in|use|put|add|with|of|write|contain|include|(?<!you\s)have|ask) "
        r"(\d+){a}{noun}",
    ),
)
# A limit for each sentence or word is none for the reply: "sentences under 10 words", "at most 10 words a sentence".
_OF_PART = re.compile(
    rf"(?:(?<!\d )\b{_UNIT}\b[^,;:]*|\d (?:\w+ )?{_UNIT}(?: (?:of|with|that|which|are|is))*\s*)$"
)
_PER_PART = re.compile(
    rf"(?: long)?(?: (?:per|an?|each|every|(?:in|for|to|of) (?:each|every|any|an?|1|the)) (?:\w+ )?{_UNIT}\b"
    rf"|[- ]{_UNIT}\b| in a row\b| each(?=\s*(?:[.,;!]|$)))"
)
# Nor is one for something in the reply: "two words of Latin", "one sentence about the sea", "open with one word",
# "describe it in five words"; or one that is not meant to the number: "20 words or so".
_WHOLE = (
    rf"(?:(?:each|every|any|all|your|the|an?|1|single|whole|entire|of|own) )*"
    rf"(?:{REPLY}|users?|them|him|her|it|total|all|length|anything|everything"
    r"|(?:any|every|each|all) (?:topic|subject)s?|(?:plain|simple) (?:english|language))\b"
)
_IN_PART = re.compile(
    rf" (?:of|from|about|on|in|for|to|describing|explaining)\b(?! (?:at (?:most|least)|no more|up to|\d|{_WHOLE}))"
    r"|,? (?:or so|or thereabouts|give or take|more or less|on average|ready)\b"
)
# "Begin with a greeting and use at most 30 words": a second rule, of the reply; "and 2 sentences" are of the first.
_SECOND = (
    r"\band (?:always |never |do not )?"
    r"(?:use|write|answer|reply|respond|speak|limit|stay|keep (?!it\b|them\b|that\b))"
)
# All that a character in a chat does is to answer questions and to explain everything.
_ALL_QUESTIONS = r"(?:(?:the|all|any|every|each|of) )*questions? *(?:(?:in|with|using|within)\b|$)"
_PART = re.compile(
    rf"\b(?:{STARTS}|{ENDS})\b(?:(?!{_SECOND})[^,;:.])*$|\bthen\b"
    r"|\b(?:greet|describe|tell|summari[sz]e|explain|define|introduce|thank|praise|compliment|quote|recite|translate)\b"
    rf"(?! (?:every|any)thing\b)|\b(?:answer|reply to|respond to) (?!{_ALL_QUESTIONS})(?:\w+ ){{0,2}}questions?\b"
)
_IS = r"(?: \w+)? (?:is|are|will be|would be|gets?|counts? as|feels?|seems?)\b"
_BANNED = re.compile(
    rf"{_IS}[^.,;]*?\b(?:forbidden|banned|prohibited|taboo|rude|impolite|unacceptable|wrong|off limits|too (?:long|many"
    r"|much|short|few|little)|(?:not|never) (?:\w+ )?(?:allowed|permitted|acceptable|ok(?:ay)?|welcome))\b"
)
_DEMANDED = re.compile(
    r"\b(?:write|use|say|reply|answer|respond|give|speak|always|must|should|keep|make|include|add|put|ask|(?:have|need)"
    r" to)\b"
)


def limit(text: str, noun: str) -> Limit | None:
    """The limit that a text puts on how many of a thing there are.

    Args:
        text: an instruction, lower case, straight quotes, numbers in digits (:func:`digits`).
        noun: a regular expression of the counted thing, such as ``words?``.

    Returns:
        the limit; one without bounds where it is not for the reply as a whole; None where none is understood.
    """
    of_part = False
    text = re.sub(r"\b(?:a|one|1) single\b", "1", re.sub(r"[()]|(?<=\d),(?=\d{3})", "", text))
    for kind, form in _forms(noun):
        for match in form.finditer(text):
            before, after = text[: match.start()], text[match.end() :]
            parts = _OF_PART.search(before) or _PART.search(before)
            if parts or _PER_PART.match(after) or _IN_PART.match(after):
                of_part = True
                continue
            numbers = [int(group) for group in match.groups()]
            found = _limit(kind, numbers, before, match.group(), after)
            if found is not None:
                return found
    return Limit() if of_part else None


@cache
def _forms(noun: str) -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for kind, form in _FORMS:
        pattern = form.replace("{a}", _AFTER).replace("{noun}", rf"(?:{noun})\b")
        # Commas may part the words of a limit; elsewhere they part what it governs from what it does not.
        found.append((kind, re.compile(r"\b(?<!\d[.,])" + pattern.replace(" ", r",? "))))
    return found


def _limit(kind: str, numbers: list[int], before: str, matched: str, after: str) -> Limit | None:
    negated = True if re.search(r"\bnothing\b[\w' ]*$", before) else prohibited(before)
    if negated is None and re.search(r",\s*$", before):
        negated = False  # "no emoji, under 20 words"
    banned, number = _BANNED.match(after) is not None, numbers[0]
    if kind == "above" or matched.startswith(("more than", "longer than")):
        if negated is None or (negated and banned):
            return None
        if negated or banned:
            return Limit(high=number)
        # "Replies over 40 words bore you" demands nothing.
        return Limit(low=number + 1) if _DEMANDED.search(before) and not re.match(_IS, after) else None
    if banned:
        return Limit(low=number) if kind == "below" and negated is False else None
    if kind == "between":
        return Limit(low=min(numbers), high=max(numbers))
    if kind == "high":
        return Limit(high=number)
    if kind == "below" and negated is not None:
        return Limit(low=number) if negated else Limit(high=number - 1)
    if kind == "low":
        return Limit(low=number)
    if negated is not False:
        return None
    # "One question at a time" allows none.
    return Limit(None if re.match(r" at (?:a time|once)\b", after) else number, number)
