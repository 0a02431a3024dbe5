"""Makes events durable off the event loop: one thread, one sync for all events that wait (group commit)."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from flywheel_tasks.serving.events import Event
from flywheel_tasks.serving.journal import Journal, JournalError, recover
from flywheel_tasks.serving.turns import LoggedTurn, TurnIndex

_MOST_AT_ONCE = 1000
_PROBE_SECONDS = 1.0
_FORGET_SECONDS = 86_400.0
_FORGET_ROWS, _PAUSE_SECONDS = 500, 0.02  # at a time, some milliseconds; and the pause where nobody waits
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    lines: list[bytes]
    turns: Sequence[LoggedTurn]
    done: "asyncio.Future[None]"
    loop: asyncio.AbstractEventLoop


def _settle(batches: Sequence[_Batch], error: Exception | None) -> None:
    for batch in batches:
        if batch.done.done():
            continue
        if error is None:
            batch.done.set_result(None)
        else:
            batch.done.set_exception(JournalError(str(error)))


class Recorder:
    """Writes events to the logs and their turns to the index.

    Args:
        folder: of raw logs.
        index: path of the turns' database.
        window: seconds, as for :class:`Journal`.
        turn_days: older turns are forgotten, at the start and once a day.
        heading: as for :class:`Journal`.

    Attributes:
        healthy: whether the last write succeeded, of the events and of their turns; tried again each second.
        written: events made durable.
        commits: syncs of a log file.
    """

    def __init__(
        self,
        folder: Path,
        index: Path,
        *,
        window: int,
        turn_days: int,
        heading: Callable[[], Sequence[bytes]] = tuple,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        self._folder = folder
        self.healthy = True
        self.written = 0
        self.commits = 0
        self._journal = Journal(folder, window, heading)
        self._index = TurnIndex(index)
        self._turn_days, self._forget_at = turn_days, time.monotonic()
        self._queue: queue.Queue[_Batch | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, events: Sequence[Event], turns: Sequence[LoggedTurn] = ()) -> "asyncio.Future[None]":
        """Hand over events; they are written even if nobody waits.

        Returns:
            done when the events survive a crash; a :class:`JournalError` if they could not be written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        # A client that went away no longer asks how it ended.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._queue.put(_Batch([orjson.dumps(event) for event in events], turns, done, loop))
        return done

    def _run(self) -> None:
        while True:
            batches = self._waiting()
            stop = None in batches
            if work := [batch for batch in batches if batch is not None]:
                self._commit(work)
            else:
                self._roll()
                if not self.healthy:
                    self._probe()
            self._forget()
            if stop:
                break
        if late := [batch for batch in self._left() if batch is not None]:
            self._commit(late)
        try:
            self._journal.close()
            recover(self._folder)
        except OSError as error:
            _log.error("the last log file could not be sealed: %s", error)
        self._index.close()

    def _waiting(self) -> list[_Batch | None]:
        """All batches that wait; none if the window ended first."""
        batches: list[_Batch | None] = []
        seconds = self._journal.seconds_left() + 0.001
        if time.monotonic() >= self._forget_at:
            seconds = min(seconds, _PAUSE_SECONDS)
        try:
            batches.append(self._queue.get(timeout=seconds if self.healthy else min(seconds, _PROBE_SECONDS)))
        except queue.Empty:
            return batches
        return batches + self._left(_MOST_AT_ONCE - 1)

    def _left(self, most: int | None = None) -> list[_Batch | None]:
        """What lies in the queue, without waiting."""
        batches: list[_Batch | None] = []
        try:
            while most is None or len(batches) < most:
                batches.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batches

    def _roll(self) -> None:
        try:
            self._journal.roll()
        except OSError as error:
            self.healthy = False
            _log.error("a log file could not be sealed: %s", error)

    def _forget(self) -> None:
        """Drop old turns once a day, for a worker may run for months; a few at a time, for requests wait meanwhile."""
        if time.monotonic() < self._forget_at:
            return
        left = False
        try:
            left = self._index.forget(self._turn_days, _FORGET_ROWS) == _FORGET_ROWS
        except Exception as error:  # it is tried again tomorrow
            _log.error("old turns were not forgotten: %s: %s", type(error).__name__, error)
        if not left:
            self._forget_at = time.monotonic() + _FORGET_SECONDS

    def _probe(self) -> None:
        """See whether events can be written again: a worker that is not ready gets no requests that would tell."""
        try:
            self._journal.write([])
            self._index.add([])
        except Exception as error:
            _log.debug("still not writable: %s", error)
        else:
            self.healthy = True

    def _commit(self, batches: list[_Batch]) -> None:
        error: Exception | None = None
        try:
            lines = [line for batch in batches for line in batch.lines]
            self._journal.write(lines)
            self.written += len(lines)
            self.commits += 1
        except Exception as caught:  # of whatever kind: nothing of it is acknowledged, and the thread goes on
            error = caught
            _log.error("events were not recorded: %s: %s", type(caught).__name__, caught)
        self.healthy = error is None and self._indexed([turn for batch in batches for turn in batch.turns])
        for loop in {batch.loop for batch in batches}:
            mine = [batch for batch in batches if batch.loop is loop]
            try:
                loop.call_soon_threadsafe(_settle, mine, error)
            except RuntimeError:  # its loop is closed: nobody waits any more
                _log.warning("%d batches were written after their requests had gone", len(mine))

    def _indexed(self, turns: Sequence[LoggedTurn]) -> bool:
        """Add turns to the index; False if that failed.

        Their events are durable by then, so they are acknowledged all the same: a client that was told otherwise would
        send them again, and the logs would have them twice.
        """
        try:
            if turns:
                self._index.add(turns)
        except Exception as error:
            _log.error("%d turns were not indexed: %s: %s", len(turns), type(error).__name__, error)
            return False
        return True

    def close(self) -> None:
        """Write what waits, seal the log file, end the thread."""
        self._queue.put(None)
        self._thread.join()
