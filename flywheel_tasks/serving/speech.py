"""A reply as it is shown while it is written: whole sentences only.

Each is checked for safety before it is shown, and a reply that the token limit cuts off ends with its last whole
sentence, as everywhere else (:mod:`flywheel_tasks.policy.sentences`).
"""

import re
from collections import deque

from flywheel_tasks.policy.sentences import (
    AFTER,
    CLOSERS,
    GREEK_QUESTION,
    SPACED_ENDS,
    WIDE_ENDS,
    whole_sentences,
)

_STATES = 64  # parts of a reply that are remembered
# The end of a sentence, all its closers, and what shows that it is one: a space after it, or of a wide mark anything.
_END = re.compile(
    rf"(?:[{SPACED_ENDS}]|{GREEK_QUESTION}){CLOSERS}+(?={AFTER})|[{WIDE_ENDS}]{CLOSERS}+(?=[^{WIDE_ENDS}])"
)
# Characters of an end that are looked at again with the next piece; if it has more closers, a later end shows it.
_LONGEST_END = 16


def finished(text: str, finish: str) -> str:
    """A whole reply as a user sees it.

    Args:
        text: as the model wrote it.
        finish: ``stop``, or ``length`` if it was cut off.
    """
    return text.strip() if finish != "length" else whole_sentences(text) or text.strip()


class Speech:
    """Collects a reply's pieces and gives out what may be shown.

    Attributes:
        shown: what was given out; at the end it is what :func:`finished` says of the whole.
    """

    def __init__(self) -> None:
        self.shown = ""
        self._text = ""
        self._end = 0
        self._whole = ""  # the text up to there
        self._lengths: deque[int] = deque(maxlen=_STATES)

    def add(self, piece: str) -> str:
        """Take a piece; returns all that may be shown so far, of which :attr:`shown` is the start."""
        unseen = max(self._end, len(self._text) - _LONGEST_END)
        self._text += piece
        for match in _END.finditer(self._text, unseen):
            self._end = match.end()
        if self._end > unseen:
            self._whole = self._text[: self._end].strip()
        return self._whole

    def end(self, finish: str) -> str:
        """No more pieces come; returns the whole reply."""
        whole = finished(self._text, finish)
        return whole if whole.startswith(self.shown) else self.shown

    def show(self, upto: str) -> str:
        """Note that ``upto`` is shown now; returns what is new of it."""
        new = upto[len(self.shown) :]
        self.shown = upto
        self._lengths.append(len(upto))
        return new

    def states(self) -> list[str]:
        """What :attr:`shown` was lately, from part to part."""
        return [self.shown[:length] for length in self._lengths]
