"""Stops asking a model that fails, and tries it again after a while."""

import time
from collections.abc import Callable


class Breaker:
    """A circuit breaker: closed (asks), open (does not ask), half open (lets one request try).

    Args:
        failures: so many in a row open it.
        seconds: until one request may try again.
        now: a clock that never goes back.
    """

    def __init__(self, failures: int, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._now = failures, seconds, now
        self._failed = 0
        self._try_at: float | None = None

    @property
    def open(self) -> bool:
        """Whether the model is not asked now."""
        return self._try_at is not None and self._now() < self._try_at

    def allows(self) -> bool:
        """Whether this request may ask the model; says yes to one request only after a pause."""
        if self._try_at is None:
            return True
        if self._now() < self._try_at:
            return False
        self._try_at = self._now() + self._seconds
        return True

    def succeeded(self) -> None:
        """The model answered."""
        self._failed, self._try_at = 0, None

    def failed(self) -> bool:
        """The model failed; True if this opened the breaker."""
        self._failed += 1
        if self._failed < self._limit:
            return False
        opened = self._try_at is None
        self._try_at = self._now() + self._seconds
        return opened
