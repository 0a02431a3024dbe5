"""Finds a user in raw logs by the hash of each line's id, and rewrites the files without them."""

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.identity import Identity, Mask, UserKey, user_fields
from flywheel_tasks.traffic.log_store import open_logs
from flywheel_tasks.traffic.logs import LogsError, partition_copy, pin_logs


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        yield from gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    except (EOFError, gzip.BadGzipFile) as error:
        raise LogsError(
            f"{name}: the gzip file is cut or damaged ({error}): mend or delete it yourself"
        ) from error


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


def find(location: str, root: Path, key: UserKey, user: str, rename: Mapping[str, str]) -> dict[str, int]:
    """Files of raw logs that hold a user, with the number of their lines.

    Args:
        location: the setting ``logs.location``.
        root: the workspace.
        key: of user ids.
        user: the hash.
        rename: the setting ``ingest.rename``: old field names to new ones.

    Raises:
        LogsError: there are no logs, or they cannot be read.
    """
    theirs = _Theirs(key, user, rename)
    found = {}
    for partition in pin_logs(location, root)["partitions"]:
        name = partition["path"]
        with partition_copy(location, root, partition) as file:
            if name.endswith(".parquet"):
                lines = sum(theirs.rows(pq.read_table(file)))
            else:
                lines = sum(map(theirs.line, _lines(file, name)))
        if lines:
            found[name] = lines
    return found


def rewrite(
    location: str, root: Path, names: list[str], key: UserKey, user: str, rename: Mapping[str, str]
) -> None:
    """Rewrite files of raw logs without a user's lines; all other bytes of lines stay as they are.

    Args:
        location: the setting ``logs.location``: a folder, or ``s3://bucket/prefix``.
        root: the workspace.
        names: files, as :func:`find` gives them.
        key: of user ids.
        user: the hash.
        rename: the setting ``ingest.rename``.

    Raises:
        LogsError: a file changed meanwhile or cannot be read.
    """
    theirs, store = _Theirs(key, user, rename), open_logs(location, root)
    for partition in pin_logs(location, root)["partitions"]:
        name = partition["path"]
        if name not in names:
            continue
        with partition_copy(location, root, partition) as file:
            if name.endswith(".parquet"):
                table = pq.read_table(file)
                kept: Any = table.filter(pa.array([not one for one in theirs.rows(table)], pa.bool_()))
                sink = pa.BufferOutputStream()
                pq.write_table(kept, sink)
                data = sink.getvalue().to_pybytes()
            else:
                data = b"".join(line for line in _lines(file, name) if not theirs.line(line))
                data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
        store.replace(name, data)
