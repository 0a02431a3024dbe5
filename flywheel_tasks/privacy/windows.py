"""Long texts in overlapping windows, so that the cost of a search grows with the text and not with its square.

Presidio compares the findings of a text with one another, and some expressions look far ahead: a text of a megabyte
would take hours as a whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

SIZE = 2000  # characters: most messages are shorter, and are looked at as a whole
OVERLAP = (
    400  # characters that a window shares with the next one, at the least: an e-mail address has 320 at most
)
CONTEXT = 64  # characters before an identifier that some rules read ("SSN:", "version")
_EDGE = 16  # characters: what ends so close to a cut may go on behind it


class Window(NamedTuple):
    """A part of a text.

    Attributes:
        start: offset of its first character.
        end: offset after its last one.
        seen: where the window before ends; 0 for the first one.
        next: where the next one starts; the end of the text for the last one.
    """

    start: int
    end: int
    seen: int
    next: int

    def vouches(self, start: int, end: int) -> bool:
        """Whether a finding of this window counts; close to a cut it does not if a neighbour sees more of it.

        Args:
            start: offset of the finding in the whole text.
            end: offset after it.
        """
        without_context = start < self.start + CONTEXT and end <= self.seen - _EDGE
        cut_off = end > self.end - _EDGE and start >= self.next + CONTEXT
        return not without_context and not cut_off


def windows(text: str) -> Iterator[Window]:
    """The windows of a text, each :data:`SIZE` characters at most, cut behind white space where there is some.

    Args:
        text: any text; a short one is one window.
    """
    start = seen = 0
    while len(text) - start > SIZE:
        end = _cut(text, start + SIZE)
        following = _cut(text, end - OVERLAP)
        yield Window(start, end, seen, following)
        start, seen = following, end
    yield Window(start, len(text), seen, len(text))


def _cut(text: str, at: int) -> int:
    """The place behind white space that is closest before ``at``; ``at`` itself if there is none near it."""
    return next((place for place in range(at, at - CONTEXT, -1) if text[place - 1].isspace()), at)
