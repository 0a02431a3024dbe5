"""Finds users in raw logs by the hash of each line's id, and rewrites the files without them."""

import gzip
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.identity import Identity, Mask, UserKey, user_fields
from flywheel_tasks.traffic.lines import CorruptGzipError, TruncatedGzipError, gzip_chunks
from flywheel_tasks.traffic.log_store import (
    ChangedLogError,
    LogsError,
    LogStore,
    MissingLogError,
    open_logs,
)

_BATCH_ROWS = 65_536
_TRAILER = 8  # bytes at the end of a gzip stream, without which it counts as cut


class Found(NamedTuple):
    """Where some users are in raw logs.

    Attributes:
        lines: the number of their lines, by file.
        broken: files that could not be read to their end, and what that means for the users.
        users: those of whom there are lines.
    """

    lines: dict[str, int]
    broken: dict[str, str]
    users: set[str]


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
    """Which lines and rows name one of some users, under any name that the logs have for the field.

    Attributes:
        seen: the users that were named.
    """

    def __init__(self, key: UserKey, users: Collection[str], rename: Mapping[str, str]) -> None:
        self._identity = Identity(key, frozenset(users))
        self._mask, self._fields = Mask(self._identity, rename), user_fields(rename)
        self.seen: set[str] = set()

    def line(self, line: bytes) -> bool:
        """Whether a line names one of the users."""
        found = self._mask.masked(line.rstrip(b"\r\n").decode(errors="backslashreplace"))
        if found.forgotten:
            self.seen |= self._identity.forgotten.intersection(found.users)
        return found.forgotten

    def columns(self, names: Sequence[str]) -> list[str]:
        """Of some columns those that can name a user."""
        return [name for name in names if name in self._fields]

    def rows(self, table: pa.Table) -> list[bool]:
        """Whether each row names one of the users."""
        found = [False] * table.num_rows
        for name in self.columns(table.column_names):
            table[name].validate(full=True)  # a text that is not UTF-8
            hashed = self._identity.key.hashed_column(table[name].cast(pa.string())).to_pylist()
            self.seen |= self._identity.forgotten.intersection(hashed)
            found = [
                before or user in self._identity.forgotten for before, user in zip(found, hashed, strict=True)
            ]
        return found


@contextmanager
def _copy(store: LogStore, name: str) -> Iterator[BinaryIO]:
    """A private copy of a file, at its start: it stays the same however long it is searched."""
    with TemporaryFile() as file:
        for chunk in store.chunks(name):
            file.write(chunk)
        file.seek(0)
        yield file


@contextmanager
def _damage() -> Iterator[None]:
    """Arrow tells of damaged pages as of a failing disk; here they are what every other damage is."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(" ".join(str(error).split())) from error


def _parquet(file: BinaryIO) -> pq.ParquetFile:
    with _damage():
        found = pq.ParquetFile(file)
        if len(set(found.schema_arrow.names)) < len(found.schema_arrow.names):
            raise pa.ArrowInvalid("two columns have one name")
    return found


def _tables(source: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Some rows at a time."""
    batches = source.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
    while True:
        with _damage():
            batch = next(batches, None)
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def _count(file: BinaryIO, name: str, theirs: _Theirs) -> Iterator[int]:
    """The number of the users' lines, a part of the file at a time; of a broken file first what can be read."""
    if name.endswith(".parquet"):
        source = _parquet(file)
        columns = theirs.columns(source.schema_arrow.names)
        for table in _tables(source, columns):
            yield sum(theirs.rows(table))
        return
    for line in _lines(file, name):
        yield theirs.line(line)


def find(
    location: str,
    root: Path,
    names: Sequence[str],
    key: UserKey,
    users: Collection[str],
    rename: Mapping[str, str],
) -> Found:
    """Files of raw logs that hold one of some users.

    Each file is read once, as it is then: logs may grow and old ones go while others are searched. A file that is gone
    holds nobody.

    Args:
        location: the setting ``logs.location``.
        root: the workspace.
        names: which files, as :func:`flywheel_tasks.traffic.logs.list_logs` gives them.
        key: of user ids.
        users: their hashes.
        rename: the setting ``ingest.rename``: old field names to new ones.

    Raises:
        LogsError: a file cannot be read.
    """
    theirs, store = _Theirs(key, users, rename), open_logs(location, root)
    found = Found({}, {}, theirs.seen)
    for name in names:
        lines = 0
        try:
            with _copy(store, name) as file:
                for more in _count(file, name, theirs):
                    lines += more
        except MissingLogError:
            continue
        except TruncatedGzipError:
            found.broken[name] = "is cut: what can be read of it was searched"
        except (CorruptGzipError, pa.ArrowException) as error:
            found.broken[name] = (
                f"is damaged ({error}), with {lines} of their lines before that: it is not rewritten, "
                "mend or delete it yourself"
            )
            continue
        if lines:
            found.lines[name] = lines
    return found


def rewrite(
    location: str,
    root: Path,
    names: Sequence[str],
    key: UserKey,
    users: Collection[str],
    rename: Mapping[str, str],
) -> None:
    """Rewrite files of raw logs without the lines of some users; all other bytes of lines stay as they are.

    Args:
        location: the setting ``logs.location``: a folder, or ``s3://bucket/prefix``.
        root: the workspace.
        names: files, as :func:`find` gives them in ``lines``; one that is gone by now is passed over.
        key: of user ids.
        users: their hashes.
        rename: the setting ``ingest.rename``.

    Raises:
        LogsError: a file cannot be read or written, or was written to meanwhile. Such a file stays as it is; the
            others are rewritten first.
    """
    theirs, store, changed = _Theirs(key, users, rename), open_logs(location, root), list[str]()
    for name in names:
        try:
            _rewrite(store, name, theirs)
        except MissingLogError:
            continue
        except ChangedLogError as error:
            changed.append(str(error))
        except (CorruptGzipError, pa.ArrowException) as error:
            raise LogsError(f"{location}: {name} is damaged by now: {error}") from error
    if changed:
        raise LogsError("\n".join(changed))


def _rewrite(store: LogStore, name: str, theirs: _Theirs) -> None:
    version = store.version(name)  # before it is read: so whatever is written to it later makes another one
    with TemporaryDirectory() as folder, _copy(store, name) as file:
        kept = Path(folder) / "kept"
        if name.endswith(".parquet"):
            _write_rows_without(file, theirs, kept)
        else:
            _write_lines_without(file, name, theirs, kept)
        store.replace(name, kept, version)


def _write_rows_without(file: BinaryIO, theirs: _Theirs, kept: Path) -> None:
    source = _parquet(file)
    with pq.ParquetWriter(kept, source.schema_arrow) as out:
        for table in _tables(source):
            out.write_table(table.filter(pa.array([not one for one in theirs.rows(table)], pa.bool_())))


def _write_lines_without(file: BinaryIO, name: str, theirs: _Theirs, kept: Path) -> None:
    cut = False
    with kept.open("wb") as out:
        packed = gzip.GzipFile("", "wb", fileobj=out, mtime=0) if name.endswith(".gz") else None
        into = out if packed is None else packed
        try:
            for line in _lines(file, name):
                if not theirs.line(line):
                    into.write(line)
        except TruncatedGzipError:
            cut = True
        if packed is not None:
            packed.close()
        if cut:  # it stays so, that whoever reads it is told that its last line is not whole
            out.truncate(out.tell() - _TRAILER)
