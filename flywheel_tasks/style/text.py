"""What a reply is made of: words, sentences, emoji, lists. The one definition that all metrics share."""

import re
import unicodedata
from typing import NamedTuple

import emoji

from flywheel_tasks.policy.sentences import CLOSERS, GREEK_QUESTION, NEXT, SPACED_ENDS, WIDE_ENDS

# Vowel signs, points and tones, which stand inside words of many scripts, and joiners: to ``\w`` they are no part of a
# word. Variation selectors belong to emoji.
MARK = "[{}\u200c\u200d]".format(
    "".join(
        mark
        for mark in map(chr, [*range(0x300, 0xFE00), *range(0xFE10, 0x10000)])
        if unicodedata.category(mark) in {"Mn", "Mc"}
    )
)
_LETTERS = rf"[^\W_]+(?:{MARK}[^\W_]*)*"
_WORD = re.compile(rf"{_LETTERS}(?:['’\-]{_LETTERS})*")
# Titles, whose full stop ends no sentence; and a regular expression for after a stop that is none of theirs.
ABBREVIATIONS = ("Dr", "Mr", "Mrs", "Ms", "St", "Prof", "Capt", "Sgt", "Lt")
NO_ABBREVIATION = "".join(rf"(?<!\b(?i:{title})\.)" for title in ABBREVIATIONS)
# A quote's end goes on with a small letter: ``"Stop!" she cried.`` Other abbreviations do with one or a digit, as do
# letters with stops (``U.S.``, ``9 a.m.``).
_SMALL = r"(?=\s+[a-zß-öø-ÿа-яё])"
_SMALL_OR_DIGIT = r"(?=[)\]]*\s+[a-zß-öø-ÿа-яё\d])"
_DOTTED = ("etc", r"e\.g", r"i\.e", "vs", "ft", "approx", r"[a-z]\.[a-z]")
# After an initial comes a name (``J. R. Smith``, ``U.S. Navy``), maybe after more initials, or a small letter. A word
# that opens sentences tells that a letter ended one (``Plan B. It works.``), and ``I`` is more often a pronoun.
_OPENERS = (
    "I|You|He|She|It|We|They|This|That|These|Those|There|Here|The|A|An|My|Your|His|Her|Its|Our|Their|And|But|Or|So|Then"
    "|Now|If|When|While|As|Because|Since|After|Before|Until|Who|What|Where|Why|How|Which|Is|Are|Was|Were|Do|Don['’]t|Does|Did"
    "|Can|Could|Will|Would|Should|Have|Has|Had|Let|Not|No|Yes|Oh|Ah|Well|Never|Always|Maybe|Perhaps|Please|In|On|At|For|With"
    "|From|To|Of|All|Some|Every|Everyone|Nobody|Nothing|Something|Both|Each|Just|Only|Even|Still|Also"
)
_GOES_ON = "|".join(
    [
        *(rf"(?<=\b(?i:{short})\.){_SMALL_OR_DIGIT}" for short in _DOTTED),
        r"(?<=\bno\.|\bNo\.)(?=\s+\d)",
        rf"(?<=\d\s(?i:in)\.){_SMALL}",
        rf"(?<=(?<![\w'’°])[A-HJ-Z]\.)(?:{_SMALL}|(?=(?:\s+[A-Z]\.)*\s+(?!(?:{_OPENERS})\b)[A-Z]\w))",
    ]
)
_SENTENCE = re.compile(
    rf"(?:[{SPACED_ENDS}]+|{GREEK_QUESTION}){NO_ABBREVIATION}(?!{_GOES_ON})(?![\"'”’»]+{_SMALL}){CLOSERS}{NEXT}"
    rf"|[{WIDE_ENDS}]+{CLOSERS}|\n+"
)
_ENDED = re.compile(rf"(?:[{SPACED_ENDS}{WIDE_ENDS}~]|{GREEK_QUESTION})$")
_QUESTIONS = re.compile(rf"[?？؟]+|{GREEK_QUESTION}")
# Letters of scripts that part no words by spaces; Thai and Lao have no mark for the end of a sentence either.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f]"
)
_NO_MARKS = re.compile(r"[\u0e00-\u0eff]$")
_BULLET = re.compile(r"^\s*(?:[-*•–+]\s+\S|\(?\d{1,2}[.)]\s+\S|[a-h]\)\s+\S)", re.MULTILINE)
_INLINE_NUMBERS = re.compile(r"(?:^|\s)\(?1[.)]\s+\S.*?\s\(?2[.)]\s+\S", re.DOTALL)
_STRAIGHT = str.maketrans("’‘“”", "''\"\"")
_CLOSERS = "\"'”’)]}*_~»`」』）】 \t\n"


def straight(text: str) -> str:
    """The text in NFKC with straight quotes and apostrophes, as patterns expect it."""
    return straight_quotes(unicodedata.normalize("NFKC", text))


def straight_quotes(text: str) -> str:
    """The text with straight quotes and apostrophes, and as many characters as it was written with."""
    return text.translate(_STRAIGHT)


def words(text: str) -> list[str]:
    """The words, in lower case, with their vowel signs; ``don't`` and ``well-known`` are one word each."""
    return [match.group().lower() for match in _WORD.finditer(straight(text))]


def sentences(text: str) -> int:
    """How many sentences: parts that hold a word, parted by ``.``, ``!``, ``?``, ``…``, their like or a line break.

    Neither ``Dr. Ostrov``, ``J. R. Smith`` and ``the U.S. for years`` nor ``"Stop!" she cried`` is parted. Of a capital
    letter with a stop only the next word tells: ``Plan B. It works.`` is parted, ``Plan B. Tom knows it.`` is not.
    """
    return sum(1 for part in _SENTENCE.split(text) if _WORD.search(part))


def questions(text: str) -> int:
    """How many question marks, those in a row as one; a Greek ``;`` is one too."""
    return len(_QUESTIONS.findall(text))


def exclamations(text: str) -> int:
    """How many exclamation marks, wide ones too."""
    return text.count("!") + text.count("！")


def asks(text: str) -> bool:
    """Whether it ends with a question mark."""
    last = ending(text)
    return any(match.end() == len(last) for match in _QUESTIONS.finditer(last))


def words_unclear(text: str) -> bool:
    """Whether over a tenth of it is in a script without spaces, so that its words cannot be counted."""
    return len(_UNSPACED.findall(text)) * 10 > len("".join(text.split()))


class Lengths(NamedTuple):
    """How long two texts are, in a ``unit`` of both: words or characters."""

    one: int
    other: int
    unit: str


def lengths(one: str, other: str) -> Lengths:
    """Lengths to compare: words parted by spaces; characters without spaces where either's words are unclear."""
    if words_unclear(one) or words_unclear(other):
        return Lengths(len("".join(one.split())), len("".join(other.split())), "characters")
    return Lengths(len(one.split()), len(other.split()), "words")


def emoji_count(text: str) -> int:
    """How many emoji."""
    return emoji.emoji_count(text)


def ending(text: str) -> str:
    """The text without closing quotes, brackets, asterisks, emoji and spaces at its end."""
    text = text.rstrip(_CLOSERS)
    while text:
        last = emoji.emoji_list(text)
        if not last or last[-1]["match_end"] != len(text):
            return text
        text = text[: last[-1]["match_start"]].rstrip(_CLOSERS)
    return text


def has_list(text: str) -> bool:
    """Whether it has a list: two or more bulleted or numbered lines, or ``1. … 2. …`` in one line."""
    return len(_BULLET.findall(text)) >= 2 or bool(_INLINE_NUMBERS.search(text))


def cut_off(text: str) -> bool:
    """Whether it stops without the end of a sentence (an emoji or a closed *action* ends one too).

    Thai and Lao have no mark for that: what ends in their letters is never cut off.
    """
    stripped = text.strip()
    if not stripped:
        return True
    last = ending(stripped)
    if _ENDED.search(last) or _NO_MARKS.search(last):
        return False
    if emoji.emoji_list(stripped) and emoji.emoji_list(stripped)[-1]["match_end"] == len(stripped):
        return False
    return not re.search(r"\*[^*\n]+\*$", stripped)
