"""Text as a recogniser should see it: look-alikes made plain, invisible characters gone, offsets kept.

Full-width and other digits become ASCII (NFKC, decimal values), Cyrillic and Greek letters that look Latin become
Latin, odd dashes and spaces become plain ones, and characters that are not seen (zero-width, variation selectors,
keycaps) are left out.
"""

import unicodedata
from functools import lru_cache
from typing import NamedTuple

_CYRILLIC = ("аеорсухіјѕԁһкмтвнАЕОРСУХІЈЅКМТВНҮ", "aeopcyxijsdhkmtbhAEOPCYXIJSKMTBHY")
_GREEK = ("οναικρτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ovaikptuxABEZHIKMNOPTYX")
_HOMOGLYPHS = {a: b for these, those in (_CYRILLIC, _GREEK) for a, b in zip(these, those, strict=True)}
_UNSEEN = frozenset("\u20e3\u034f\u115f\u1160\u3164\u00ad")  # keycap, joiners, fillers, soft hyphen


class Folded(NamedTuple):
    """A folded text.

    Attributes:
        text: the folded characters.
        origin: for each of them, the offset of the character that it comes from; None where nothing changed.
    """

    text: str
    origin: list[int] | None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Offsets in the folded text as offsets in the original one."""
        if self.origin is None or start == end:
            return start, end
        return self.origin[start], self.origin[end - 1] + 1


@lru_cache(maxsize=65536)
def _folded(character: str) -> str:
    if character in _HOMOGLYPHS:
        return _HOMOGLYPHS[character]
    category = unicodedata.category(character)
    if category == "Cf" or character in _UNSEEN or "\ufe00" <= character <= "\ufe0f":
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    return unicodedata.normalize("NFKC", character)


def fold(text: str) -> Folded:
    """Fold a text.

    Args:
        text: any text.
    """
    if text.isascii():
        return Folded(text, None)
    pieces: list[str] = []
    origin: list[int] = []
    for offset, character in enumerate(text):
        piece = character if character.isascii() else _folded(character)
        pieces.append(piece)
        origin.extend([offset] * len(piece))
    return Folded("".join(pieces), origin)
