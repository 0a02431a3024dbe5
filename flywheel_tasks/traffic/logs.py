"""Where raw logs are: lists them, pins them by digest, opens one only if it is still what was pinned.

A location is a folder or ``s3://bucket/prefix``. It holds
``date=YYYY-MM-DD/*.jsonl``, ``*.jsonl.gz`` or ``*.parquet``.
S3 is reached through boto3, with the endpoint, region and credentials of the environment
(``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION``, ...).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import pyarrow as pa
from rich.console import Console
from rich.progress import track

from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.traffic import log_window
from flywheel_tasks.traffic.in_order import THREADS, in_order
from flywheel_tasks.traffic.known_digests import KnownDigests
from flywheel_tasks.traffic.lines import (
    Block,
    CorruptGzipError,
    gzip_chunks,
    line_blocks,
    plain_chunks,
)
from flywheel_tasks.traffic.log_store import LogsError as LogsError
from flywheel_tasks.traffic.log_store import LogStore, open_logs
from flywheel_tasks.traffic.log_window import partition_date
from flywheel_tasks.traffic.tabular import TabularError, read_tables

_DATED = re.compile(r"date=[^/]*")
_PARTITION = re.compile(r"date=(\d{4}-\d{2}-\d{2})/[^/]+\.(?:jsonl(?:\.gz)?|parquet)")
_LOG_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def _partitions(names: Iterable[str], location: str) -> list[str]:
    """The names that are partitions, sorted; a log file in a wrong place is an error, others are no logs."""
    found = []
    for name in sorted(names):
        parts = name.split("/")
        if any(part.startswith((".", "_")) for part in parts):
            continue
        match = _PARTITION.fullmatch(name)
        if match is not None:
            try:
                date.fromisoformat(match[1])
            except ValueError as error:
                raise LogsError(f"{location}: {name}: {match[1]} is no date") from error
            found.append(name)
        elif name.endswith(_LOG_SUFFIXES) or _DATED.fullmatch(parts[0]):
            raise LogsError(
                f"{location}: {name} is not where logs belong: expected "
                "date=YYYY-MM-DD/NAME.jsonl, .jsonl.gz or .parquet (a name that starts with . or _ is ignored)"
            )
    return found


class _Digested:
    """A partition's bytes as a file to read from, and the digest of what was read.

    Attributes:
        size: bytes read.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, b""
        self._digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most one chunk of them."""
        chunk = self._left or next(self._chunks, b"")
        if not self._left:
            self._digest.update(chunk)
            self.size += len(chunk)
        size = len(chunk) if size < 0 else size
        self._left = chunk[size:]
        return chunk[:size]

    def digest(self) -> str:
        """The digest of all bytes; reads those that are left."""
        while self.read():
            continue
        return "sha256:" + self._digest.hexdigest()


def _check_digest(location: str, root: Path, partition: Mapping[str, Any], digest: str) -> None:
    if digest != partition["sha256"]:
        KnownDigests(root, location, open_logs(location, root)).drop(partition["path"])
        raise LogsError(
            f"{location}: {partition['path']} changed since it was pinned (now {digest}, "
            f"pinned {partition['sha256']}); start a new generation to pin the logs again"
        )


def list_logs(location: str, root: Path) -> list[str]:
    """The names of the partitions of a location, sorted; none of them is opened.

    Args:
        location: as in :func:`pin_logs`.
        root: the workspace.

    Raises:
        LogsError: the location cannot be listed, or a log file is in the wrong place.
    """
    return _partitions(open_logs(location, root).names(), location)


def pin_logs(
    location: str,
    root: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    newest_days: int | None = None,
    today: date | None = None,
    earlier: Iterable[Mapping[str, Any]] = (),
    late_days: int = 0,
) -> dict[str, Any]:
    """List the partitions of a location with their digests: the document ``inputs/logs.json``.

    Files that this workspace has pinned before, and that have not changed since, are not read again.

    Args:
        location: a folder (relative to ``root`` or absolute) or ``s3://bucket/prefix``.
        root: the workspace.
        wanted: which partitions, by path; the others are not read.
        newest_days: only partitions of so many days, and of those since the last generation's (see
            :func:`flywheel_tasks.traffic.log_window.newest_days`).
        today: in UTC; a partition of a later day than tomorrow is then an error. None: dates are not compared with it.
        earlier: what earlier generations pinned, the newest first: their days may have late files.
        late_days: so many days before the newest ones, at most, are read.

    Returns:
        ``{"location", "since", "until", "earlier", "unread", "partitions": [{"path", "sha256", "bytes"}, ...]}``,
        sorted by path; ``since`` and ``until`` are the first and the last of these days (None: all), ``earlier``
        whether there are logs from before them, ``unread`` the days with logs that no generation reads.

    Raises:
        LogsError: there are no partitions, a log file is in the wrong place or from the future, or something cannot be
            read.
    """
    store = open_logs(location, root)
    names = _partitions(store.names(), location)
    if not names:
        raise LogsError(f"{location}: no logs: found no date=YYYY-MM-DD/*.jsonl, *.jsonl.gz or *.parquet")
    # One wrong clock would move the whole window of days. Tomorrow has begun where clocks are ahead of UTC.
    late = [name for name in names if today and partition_date(name) > today + timedelta(days=1)]
    if late:
        raise LogsError(
            f"{location}: {late[0]} is from the future (today is {today}, UTC): the window of newest days would be "
            f"counted back from it; move it, and the {len(late) - 1} others like it, or correct its date"
        )
    window = (
        log_window.newest_days(names, newest_days, today, of_place(location, root, earlier), late_days)
        if newest_days is not None
        else None
    )
    known = KnownDigests(root, location, store)
    chosen = [*window.names, *window.late] if window else names
    partitions = _digested(store, known, names, list(filter(wanted, chosen)))
    if window:
        from_before = set(window.late)
        partitions = [
            item
            for item in partitions
            if item["path"] not in from_before or item["sha256"] not in window.read
        ]
    partitions.sort(key=itemgetter("path"))
    return {
        "location": location,
        "since": window.since.isoformat() if window else None,
        "until": window.until.isoformat() if window else None,
        "earlier": window is not None and window.earlier,
        "unread": [day.isoformat() for day in window.unread] if window else [],
        "partitions": partitions,
    }


def of_place(location: str, root: Path, earlier: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """What earlier generations pinned of a location, however it is spelled."""
    here = _place(location, root)
    return (pinned for pinned in earlier if _place(pinned["location"], root) == here)


def _place(location: str, root: Path) -> str:
    return location.rstrip("/") if "://" in location else str((root / location).resolve())


def _digested(
    store: LogStore, known: KnownDigests, names: list[str], wanted: list[str]
) -> list[dict[str, Any]]:
    """``{"path", "sha256", "bytes"}`` of the wanted ones among all files of a location."""
    versions = store.versions(wanted)
    found = {name: known.of(name, versions.get(name)) for name in wanted}
    new = [name for name, entry in found.items() if entry is None]

    def digest(name: str) -> dict[str, Any]:
        file = _Digested(store.chunks(name))
        return {"path": name, "sha256": file.digest(), "bytes": file.size}

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            read = in_order(pool, digest, new)
            shown = Console(stderr=True)
            for entry in track(
                read, "Pinning logs", total=len(new), transient=True, console=shown, disable=not new
            ):
                known.note(entry, versions.get(entry["path"]))
                found[entry["path"]] = entry
    finally:
        if new:
            known.keep(names)  # what was read before an error, too
    return [entry for entry in found.values() if entry is not None]


def read_pinned(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Read ``inputs/logs.json``.

    Returns:
        the location and its partitions, sorted by path.

    Raises:
        LogsError: the document is not what :func:`pin_logs` writes, or pins nothing.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("location"), str):
        raise LogsError(f"{path}: location is missing")
    partitions = document.get("partitions")
    if not isinstance(partitions, list):
        raise LogsError(f"{path}: partitions is missing")
    seen: set[str] = set()
    for number, partition in enumerate(partitions):
        where = f"{path}: partitions[{number}]"
        if not isinstance(partition, dict) or not all(
            isinstance(partition.get(key), str) for key in ("path", "sha256")
        ):
            raise LogsError(f"{where}: path and sha256 must be strings")
        if not _PARTITION.fullmatch(partition["path"]):
            raise LogsError(
                f"{where}: {partition['path']!r} is not date=YYYY-MM-DD/NAME.jsonl, .jsonl.gz or .parquet"
            )
        if partition["path"] in seen:
            raise LogsError(f"{where}: {partition['path']} is pinned twice")
        seen.add(partition["path"])
    if not partitions:
        raise LogsError(f"{path}: no logs are pinned")
    return document["location"], sorted(partitions, key=lambda partition: partition["path"])


def partition_blocks(
    location: str, root: Path, partition: Mapping[str, Any], *, max_line_bytes: int
) -> Iterator[Block]:
    """Stream the lines of a pinned partition in blocks.

    Its digest is checked at the end: what was given out counts only if there is no error.

    Args:
        location: as in :func:`pin_logs`.
        root: the workspace.
        partition: an entry of ``partitions`` (``path``, ``sha256``).
        max_line_bytes: longer lines are cut.

    Raises:
        LogsError: the partition is gone, is not what was pinned, or is damaged (a cut gzip is no error: its last
            block carries the problem ``truncated_gzip``).
    """
    name = partition["path"]
    file: Any = _Digested(open_logs(location, root).chunks(name))
    number = 1
    chunks = gzip_chunks(file) if name.endswith(".gz") else plain_chunks(file)
    try:
        for block in line_blocks(chunks, max_line_bytes):
            yield block
            number = block.number + block.data.count(b"\n")
    except CorruptGzipError as error:
        _check_digest(location, root, partition, file.digest())
        raise LogsError(f"{location}: {name}: damaged gzip, beyond line {number - 1}: {error}") from error
    _check_digest(location, root, partition, file.digest())


@contextmanager
def partition_copy(location: str, root: Path, partition: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A private copy of a pinned partition, at its start.

    Raises:
        LogsError: the partition is gone or is not what was pinned.
    """
    with TemporaryFile() as file:
        source = _Digested(open_logs(location, root).chunks(partition["path"]))
        while chunk := source.read():
            file.write(chunk)
        _check_digest(location, root, partition, source.digest())
        file.seek(0)
        yield file


def _tables(location: str, name: str, file: BinaryIO, rename: Mapping[str, str]) -> Iterator[pa.Table]:
    try:
        yield from read_tables(file, rename)
    except TabularError as error:
        raise LogsError(f"{location}: {name}: {error}") from error


def partition_tables(
    location: str, root: Path, partition: Mapping[str, Any], rename: Mapping[str, str]
) -> Iterator[pa.Table]:
    """Stream the rows of a pinned Parquet partition, see :func:`flywheel_tasks.traffic.tabular.read_tables`.

    Raises:
        LogsError: the partition is gone, is not what was pinned, or cannot be read.
    """
    with partition_copy(location, root, partition) as file:
        yield from _tables(location, partition["path"], file, rename)
