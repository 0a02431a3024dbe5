"""The check of what users say and what characters answer. It fails closed: no verdict is a no."""

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

_log = logging.getLogger(__name__)
CHECK_FAILED = "check_failed"


@dataclass(frozen=True)
class Verdict:
    """What a check says of a text.

    Attributes:
        allowed: whether it may be said.
        categories: why not, as short names for logs and metrics.
    """

    allowed: bool
    categories: tuple[str, ...] = ()


class SafetyCheck(Protocol):
    """Judges one text. ``slow`` ones run on a thread."""

    slow: bool

    def check(self, text: str, role: Literal["user", "assistant"]) -> Verdict:
        """The verdict on a text that a user or a character says."""


class BlockedWords:
    """Refuses texts that hold a word of a list, whatever its case.

    Args:
        words: words or phrases.
    """

    slow = False

    def __init__(self, words: Sequence[str]) -> None:
        escaped = "|".join(re.escape(word) for word in sorted(words))
        self._pattern = re.compile(rf"(?<!\w)(?:{escaped})(?!\w)", re.IGNORECASE) if words else None

    def check(self, text: str, role: Literal["user", "assistant"]) -> Verdict:
        """See :class:`SafetyCheck`."""
        if self._pattern is not None and self._pattern.search(text):
            return Verdict(False, ("blocked_word",))
        return Verdict(True)


class Guard:
    """Asks a check; an error or no answer in time is a no.

    Args:
        check: the check.
        seconds: it may take.
    """

    def __init__(self, check: SafetyCheck, seconds: float) -> None:
        self._check, self._seconds = check, seconds

    async def judge(self, text: str, role: Literal["user", "assistant"]) -> Verdict:
        """The verdict; ``check_failed`` is its category if the check gave none."""
        try:
            if not self._check.slow:
                found = self._check.check(text, role)
            else:
                thread = asyncio.to_thread(self._check.check, text, role)
                found = await asyncio.wait_for(thread, self._seconds)
            if found.allowed is True:
                return found
            return Verdict(False, tuple(found.categories) or ("unsafe",))
        except Exception as error:
            _log.error("the safety check failed: %s", type(error).__name__)
            return Verdict(False, (CHECK_FAILED,))
