"""The check of what users say and what characters answer. It fails closed: no verdict is a no."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flywheel_tasks.safety.classifier import SafetyClassifier, unsafe

_log = logging.getLogger(__name__)
CHECK_FAILED = "check_failed"


@dataclass(frozen=True)
class Verdict:
    """What the check says of a text.

    Attributes:
        allowed: whether it may be said.
        category: why not, as the classifier calls it; ``check_failed`` if there was no verdict.
    """

    allowed: bool
    category: str | None = None


class Guard:
    """Asks the safety classifier; an error or no answer in time is a no.

    Args:
        classifier: of the section ``safety``.
        threshold: the score from which on a text is unsafe.
        seconds: an answer may take.
        threads: that ask it; 0 asks at once, on the event loop (for one that takes microseconds).
    """

    def __init__(
        self, classifier: SafetyClassifier, *, threshold: float, seconds: float, threads: int
    ) -> None:
        self._classifier, self._threshold, self._seconds = classifier, threshold, seconds
        self._threads = ThreadPoolExecutor(threads, "safety") if threads else None

    def _ask(self, text: str) -> Verdict:
        found = unsafe(self._classifier, [text], self._threshold)
        return Verdict(text not in found, found.get(text))

    async def judge(self, text: str) -> Verdict:
        """The verdict on a text that a user or a character says."""
        try:
            if self._threads is None:
                return self._ask(text)
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, text)
            return await asyncio.wait_for(asked, self._seconds)
        except Exception as error:
            _log.error("the safety check failed: %s", type(error).__name__)
            return Verdict(False, CHECK_FAILED)
