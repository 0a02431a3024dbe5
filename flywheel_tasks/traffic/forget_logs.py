"""Finds a user in raw logs by the hash of each line's id, and rewrites the files without them."""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.identity import Identity, Mask, UserKey, user_fields
from flywheel_tasks.traffic.lines import CorruptGzipError, TruncatedGzipError, gzip_chunks
from flywheel_tasks.traffic.log_store import NoLogsError, open_logs
from flywheel_tasks.traffic.logs import partition_copy, pin_logs

_TRAILER = 8  # bytes at the end of a gzip stream, without which it counts as cut


class Found(NamedTuple):
    """Where a user is in raw logs.

    Attributes:
        lines: the number of their lines, by file.
        broken: files that could not be read to their end, and what that means for the user.
    """

    lines: dict[str, int]
    broken: dict[str, str]


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a file with their ends; of a broken one those that can be read, then the error."""
    if not name.endswith(".gz"):
        yield from file
        return
    chunks, begun, error = gzip_chunks(file), list[bytes](), None
    while True:
        try:
            chunk = next(chunks, None)
        except (TruncatedGzipError, CorruptGzipError) as found:
            chunk, error = None, found
        if chunk is None:
            break
        *ended, last = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*begun, line, b"\n"])
            begun = []
        begun.append(last)
    if any(begun):
        yield b"".join(begun)
    if error is not None:
        raise error


class _Theirs:
    """Which lines and rows name a user, under any name that the logs have for the field."""

    def __init__(self, key: UserKey, user: str, rename: Mapping[str, str]) -> None:
        self._identity = Identity(key, frozenset([user]))
        self._mask, self._fields = Mask(self._identity, rename), user_fields(rename)

    def line(self, line: bytes) -> bool:
        """Whether a line names the user."""
        return self._mask(line.rstrip(b"\r\n").decode(errors="backslashreplace"))[1]

    def rows(self, table: pa.Table) -> list[bool]:
        """Whether each row names the user."""
        found = [False] * table.num_rows
        for name in set(self._fields) & set(table.column_names):
            hashed = self._identity.key.hashed_column(table[name].cast(pa.string())).to_pylist()
            found = [
                before or user in self._identity.forgotten for before, user in zip(found, hashed, strict=True)
            ]
        return found


def find(location: str, root: Path, key: UserKey, user: str, rename: Mapping[str, str]) -> Found:
    """Files of raw logs that hold a user.

    Args:
        location: the setting ``logs.location``.
        root: the workspace.
        key: of user ids.
        user: the hash.
        rename: the setting ``ingest.rename``: old field names to new ones.

    Raises:
        LogsError: the logs cannot be listed, or a file changed meanwhile.
    """
    theirs, found = _Theirs(key, user, rename), Found({}, {})
    try:
        partitions = pin_logs(location, root)["partitions"]
    except NoLogsError:
        return found
    for partition in partitions:
        name, lines, damage = partition["path"], 0, None
        with partition_copy(location, root, partition) as file:
            try:
                if name.endswith(".parquet"):
                    lines = sum(theirs.rows(pq.read_table(file)))
                else:
                    for line in _lines(file, name):
                        lines += theirs.line(line)
            except TruncatedGzipError:
                found.broken[name] = "is cut: what can be read of it was searched"
            except (CorruptGzipError, pa.ArrowException) as error:
                damage = error
        if damage is not None:
            found.broken[name] = (
                f"is damaged ({damage}), with {lines} lines of the user before that: it is not rewritten, "
                "mend or delete it yourself"
            )
        elif lines:
            found.lines[name] = lines
    return found


def rewrite(
    location: str, root: Path, names: list[str], key: UserKey, user: str, rename: Mapping[str, str]
) -> None:
    """Rewrite files of raw logs without a user's lines; all other bytes of lines stay as they are.

    Args:
        location: the setting ``logs.location``: a folder, or ``s3://bucket/prefix``.
        root: the workspace.
        names: files, as :func:`find` gives them in ``lines``.
        key: of user ids.
        user: the hash.
        rename: the setting ``ingest.rename``.

    Raises:
        LogsError: a file changed meanwhile or cannot be read.
    """
    if not names:
        return
    theirs, store = _Theirs(key, user, rename), open_logs(location, root)
    for partition in pin_logs(location, root, names.__contains__)["partitions"]:
        name = partition["path"]
        with partition_copy(location, root, partition) as file:
            if name.endswith(".parquet"):
                data = _table_without(pq.read_table(file), theirs)
            else:
                data = _lines_without(file, name, theirs)
        store.replace(name, data)


def _table_without(table: pa.Table, theirs: _Theirs) -> bytes:
    kept: Any = table.filter(pa.array([not one for one in theirs.rows(table)], pa.bool_()))
    sink = pa.BufferOutputStream()
    pq.write_table(kept, sink)
    return sink.getvalue().to_pybytes()


def _lines_without(file: BinaryIO, name: str, theirs: _Theirs) -> bytes:
    kept, cut = [], False
    try:
        for line in _lines(file, name):
            if not theirs.line(line):
                kept.append(line)
    except TruncatedGzipError:
        cut = True
    data = b"".join(kept)
    if not name.endswith(".gz"):
        return data
    packed = gzip.compress(data, mtime=0)
    # A cut file stays one, so that whoever reads it is told that its last line is not whole.
    return packed[:-_TRAILER] if cut else packed
