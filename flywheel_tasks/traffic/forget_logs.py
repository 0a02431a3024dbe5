"""Finds a user in raw logs by the hash of each line's id, and rewrites the files without them."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.identity import Identity, UserKey
from flywheel_tasks.traffic.log_store import open_logs
from flywheel_tasks.traffic.logs import LogsError, partition_copy, pin_logs


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        yield from gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    except (EOFError, gzip.BadGzipFile) as error:
        raise LogsError(
            f"{name}: the gzip file is cut or damaged ({error}): mend or delete it yourself"
        ) from error


def _theirs(line: bytes, identity: Identity) -> bool:
    return identity.masked(line.decode(errors="backslashreplace"))[1]


def _column(table: pa.Table, identity: Identity) -> list[bool]:
    if "user_id" not in table.column_names:
        return [False] * table.num_rows
    hashed = identity.key.hashed_column(table["user_id"].cast(pa.string())).to_pylist()
    return [user in identity.forgotten for user in hashed]


def find(location: str, root: Path, key: UserKey, user: str) -> dict[str, int]:
    """Files of raw logs that hold a user, with the number of their lines.

    Args:
        location: the setting ``logs.location``.
        root: the workspace.
        key: of user ids.
        user: the hash.

    Raises:
        LogsError: there are no logs, or they cannot be read.
    """
    identity = Identity(key, frozenset([user]))
    found = {}
    for partition in pin_logs(location, root)["partitions"]:
        name = partition["path"]
        with partition_copy(location, root, partition) as file:
            if name.endswith(".parquet"):
                lines = sum(_column(pq.read_table(file), identity))
            else:
                lines = sum(_theirs(line, identity) for line in _lines(file, name))
        if lines:
            found[name] = lines
    return found


def rewrite(location: str, root: Path, names: list[str], key: UserKey, user: str) -> None:
    """Rewrite files of raw logs without a user's lines; all other bytes of lines stay as they are.

    Args:
        location: the setting ``logs.location``: a folder, or ``s3://bucket/prefix``.
        root: the workspace.
        names: files, as :func:`find` gives them.
        key: of user ids.
        user: the hash.

    Raises:
        LogsError: a file changed meanwhile or cannot be read.
    """
    identity, store = Identity(key, frozenset([user])), open_logs(location, root)
    for partition in pin_logs(location, root)["partitions"]:
        name = partition["path"]
        if name not in names:
            continue
        with partition_copy(location, root, partition) as file:
            if name.endswith(".parquet"):
                table = pq.read_table(file)
                kept: Any = table.filter(pa.array([not one for one in _column(table, identity)], pa.bool_()))
                sink = pa.BufferOutputStream()
                pq.write_table(kept, sink)
                data = sink.getvalue().to_pybytes()
            else:
                data = b"".join(line for line in _lines(file, name) if not _theirs(line, identity))
                data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
        store.replace(name, data)
