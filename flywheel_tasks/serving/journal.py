"""Log files that never hold a broken line: written under a hidden name, sealed by a rename.

A writer appends to ``date=YYYY-MM-DD/.open-NAME.jsonl``, which readers of raw logs pass over, and renames it to
``date=YYYY-MM-DD/NAME.jsonl`` at every full multiple of the window, by the wall clock. All writers seal at the same
instants, and what answers a message is written after it: so the sealed files hold no answer without its message.

An open file is locked by its writer; the kernel drops the lock when the writer dies. :func:`recover` seals what a
dead writer left, and puts a last line that is not whole aside, into ``.torn-NAME``.
"""

import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from flywheel_tasks.storage.atomic import sync

_OPEN, _TORN = ".open-", ".torn-"
_log = logging.getLogger(__name__)


class JournalError(RuntimeError):
    """Events could not be made durable; none of the batch counts as written."""


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _owned(handle: int, path: Path) -> bool:
    """Lock an open file; False if another process has it, or if the path is no longer this file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(handle), path.stat()
    except OSError:
        return False
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


def _seal(handle: int, path: Path) -> Path:
    """Sync an open file that this process owns, give it its final name and close it.

    It is closed also if that fails: with the lock gone, the next :func:`recover` tries again.
    """
    try:
        os.fsync(handle)
        final = path.with_name(path.name.removeprefix(_OPEN))
        path.rename(final)
        sync(final.parent)
    finally:
        os.close(handle)
    return final


def _whole_bytes(data: bytes) -> int:
    """How many bytes at the start are whole lines of JSON."""
    end = 0
    while (newline := data.find(b"\n", end)) >= 0:
        try:
            orjson.loads(data[end:newline])
        except orjson.JSONDecodeError:
            break
        end = newline + 1
    return end


def _mend(handle: int, path: Path) -> bool:
    """Put what is not whole aside; False, and the file is gone, if nothing is left."""
    data = path.read_bytes()
    whole = _whole_bytes(data)
    if whole < len(data):
        torn = path.with_name(path.name.replace(_OPEN, _TORN, 1))
        torn.write_bytes(data[whole:])
        os.ftruncate(handle, whole)
        _log.warning(
            "%s: its last %d bytes are no whole line; kept in %s", path, len(data) - whole, torn.name
        )
    if not whole:
        path.unlink()
    return bool(whole)


def _adopt(handle: int, path: Path) -> Path | None:
    try:
        left = _mend(handle, path)
    except BaseException:
        os.close(handle)  # and with it the lock: the next one tries again
        raise
    if left:
        return _seal(handle, path)
    os.close(handle)
    return None


def recover(folder: Path, dates: Collection[str] = ("*",)) -> list[Path]:
    """Seal the open files of writers that are dead.

    Args:
        folder: of raw logs; several processes may do this at once.
        dates: whose folders are looked through; all by default, which takes long where there are many files.

    Returns:
        the files that were sealed.
    """
    sealed = []
    paths = {path for date in dates for path in folder.glob(f"date={date}/{_OPEN}*.jsonl")}
    for path in sorted(paths):
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        if not _owned(handle, path):
            os.close(handle)
            continue
        if (found := _adopt(handle, path)) is not None:
            sealed.append(found)
    return sealed


class Unsealed(NamedTuple):
    """Files that readers of raw logs pass over.

    Attributes:
        open: being written, or left by a dead writer until :func:`recover` seals them.
        torn: ends of lines that a dead writer left. Nobody reads them, and nobody was told that they were recorded.
    """

    open: list[Path]
    torn: list[Path]


def unsealed(folder: Path) -> Unsealed:
    """What a gateway's folder holds beside sealed logs: whoever looks for a user must look there too.

    Args:
        folder: of raw logs; it need not be there.
    """
    return Unsealed(*(sorted(folder.glob(f"date=*/{kind}*.jsonl")) for kind in (_OPEN, _TORN)))


class Journal:
    """One writer of log files. Not safe for threads: one thread owns it.

    Args:
        folder: of raw logs.
        window: seconds; a file is sealed at every multiple of it.
        heading: lines that a date's first file begins with (the characters' cards: a generation that reads only
            the newest days must find them there).
        now: wall clock, seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        window: int,
        heading: Callable[[], Sequence[bytes]] = tuple,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._window, self._heading, self._now = folder, window, heading, now
        self._writer = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._handle: int | None = None
        self._path = folder
        self._place: tuple[str, int] = ("", 0)
        self._size = 0
        self._headed: set[str] = set()
        self._left: set[str] = set()  # dates in which a file may lie that this writer did not seal

    def seconds_left(self) -> float:
        """Until the current window ends."""
        return self._window - self._now() % self._window

    def _current(self) -> tuple[str, int]:
        now = self._now()
        return datetime.fromtimestamp(now, UTC).date().isoformat(), int(now // self._window)

    def _open(self, place: tuple[str, int]) -> None:
        day = self._folder / f"date={place[0]}"
        if not day.is_dir():
            day.mkdir(parents=True, exist_ok=True)
            sync(self._folder)
        while True:
            started = datetime.fromtimestamp(self._now(), UTC).strftime("%H%M%S%f")
            path = day / f"{_OPEN}gateway-{started}-{self._writer}.jsonl"
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            if _owned(handle, path):
                break
            os.close(handle)  # someone took the new file for a dead writer's
        sync(day)
        self._handle, self._path, self._place, self._size = handle, path, place, 0
        if place[0] not in self._headed:
            self._append(b"".join(line + b"\n" for line in self._heading()))
            self._headed = {place[0]}

    def _append(self, data: bytes) -> None:
        assert self._handle is not None
        try:
            _write_all(self._handle, data)
            os.fdatasync(self._handle)
        except OSError:
            self._give_up()
            raise
        self._size += len(data)

    def _give_up(self) -> None:
        """After a failed write: keep what was durable, leave the file to :func:`recover`."""
        assert self._handle is not None
        handle, self._handle = self._handle, None
        self._headed.clear()
        self._left.add(self._place[0])
        try:
            os.ftruncate(handle, self._size)
        except OSError as error:
            _log.error("%s: cannot be cut back to %d bytes: %s", self._path, self._size, error)
        os.close(handle)

    def write(self, lines: Sequence[bytes]) -> None:
        """Append lines; when this returns they survive a crash.

        Args:
            lines: JSON objects without line ends.

        Raises:
            JournalError: they could not be written; nothing of them stays.
        """
        try:
            self.roll()
            if self._handle is None:
                self._open(self._current())
            self._append(b"".join(line + b"\n" for line in lines))
        except OSError as error:
            raise JournalError(f"{self._folder}: events cannot be written: {error}") from error

    def roll(self) -> None:
        """Seal the open file if its window is over, and those of its day and of today whose writers died.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._handle is None or self._place == self._current():
            return
        self._left.add(self._place[0])
        self.close()
        recover(self._folder, {*self._left, self._current()[0]})
        self._left.clear()

    def close(self) -> None:
        """Seal the open file, if there is one."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            _seal(handle, self._path)
