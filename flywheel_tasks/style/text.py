"""What a reply is made of: words, sentences, emoji, lists. The one definition that all metrics share."""

import re
import unicodedata

import emoji

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# Titles, whose full stop ends no sentence; and a regular expression for after a stop that is none of theirs.
ABBREVIATIONS = ("Dr", "Mr", "Mrs", "Ms", "St", "Prof", "Capt", "Sgt", "Lt")
NO_ABBREVIATION = "".join(rf"(?<!\b(?i:{title})\.)" for title in ABBREVIATIONS)
# Other abbreviations, and a quote's end, go on with a small letter: ``"Stop!" she cried.``
_SMALL = r"(?=\s+[a-zß-öø-ÿа-яё])"
_GOES_ON = "|".join(rf"(?<=\b(?i:{short})\.){_SMALL}" for short in ("etc", r"e\.g", r"i\.e", "vs"))
_SENTENCE = re.compile(
    rf"[.!?…]+{NO_ABBREVIATION}(?!{_GOES_ON})(?![\"'”’»]+{_SMALL})[\"'”’)\]*]*(?=\s|$)|\n+"
)
_BULLET = re.compile(r"^\s*(?:[-*•–+]\s+\S|\(?\d{1,2}[.)]\s+\S|[a-h]\)\s+\S)", re.MULTILINE)
_INLINE_NUMBERS = re.compile(r"(?:^|\s)\(?1[.)]\s+\S.*?\s\(?2[.)]\s+\S", re.DOTALL)
_STRAIGHT = str.maketrans("’‘“”", "''\"\"")
_CLOSERS = "\"'”’)]}*_~»` \t\n"


def straight(text: str) -> str:
    """The text in NFKC with straight quotes and apostrophes, as patterns expect it."""
    text = unicodedata.normalize("NFKC", text)
    return text.translate(_STRAIGHT)


def words(text: str) -> list[str]:
    """The words, in lower case; ``don't`` and ``well-known`` are one word each."""
    return [match.group().lower() for match in _WORD.finditer(straight(text))]


def sentences(text: str) -> int:
    """How many sentences: parts that hold a word, parted by ``.``, ``!``, ``?``, ``…`` or a line break.

    Neither ``Dr. Ostrov`` nor ``"Stop!" she cried`` is parted.
    """
    return sum(1 for part in _SENTENCE.split(text) if _WORD.search(part))


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
    """Whether it stops without the end of a sentence (an emoji or a closed *action* ends one too)."""
    stripped = text.strip()
    if not stripped:
        return True
    if ending(stripped).endswith((".", "!", "?", "…", "~")):
        return False
    if emoji.emoji_list(stripped) and emoji.emoji_list(stripped)[-1]["match_end"] == len(stripped):
        return False
    return not re.search(r"\*[^*\n]+\*$", stripped)
