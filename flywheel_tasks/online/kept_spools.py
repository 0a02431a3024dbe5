"""What the raw logs hold of a test, a file a partition; those of a running test are kept from one look to the next.

So a look at a test that has run for days reads what came since the last one. Kept are kinds, times and keys of ids, in
``.flywheel/cache/looks``, under a secret of the test's own; they go when it is over, and with any forgotten user.
"""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.online import assignment, log_spool
from flywheel_tasks.online.log_spool import SPOOL, LogReader
from flywheel_tasks.settings import Ingest
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import DocumentError, read_json, write_json
from flywheel_tasks.storage.experiment_records import Override, Plan
from flywheel_tasks.storage.registry_state import Experiment
from flywheel_tasks.traffic.in_order import THREADS, in_order
from flywheel_tasks.traffic.logs import partition_blocks, partition_tables
from flywheel_tasks.traffic.partition_cache import PartitionCache, code_version, key_of

FOLDER = Path(".flywheel/cache/looks")
_ROWS, _DOCUMENT = "rows.parquet", "rows.json"
_SECRET_BYTES = 32


def _whole(folder: Path) -> dict[str, Any] | None:
    """The counts of a partition's spool; None if it, or its rows, are not whole, as a power cut may leave them."""
    try:
        document: dict[str, Any] = read_json(folder / _DOCUMENT)
        rows = pq.read_metadata(folder / _ROWS).num_rows
    except (FileNotFoundError, DocumentError, pa.ArrowException):
        return None
    return document if document["rows"] == rows else None


def _folder_of(root: Path, experiment: str) -> Path:
    return root / FOLDER / bytes_digest(experiment.encode()).removeprefix("sha256:")[:32]


def _read_secret(folder: Path) -> bytes | None:
    """The secret of a test's keys; None if there is none, or one that a power cut left empty."""
    try:
        found = (folder / "secret").read_bytes()
    except FileNotFoundError:
        return None
    return found if len(found) == _SECRET_BYTES else None


def _secret(folder: Path) -> bytes:
    """The secret of a test's keys, made at its first look."""
    found = _read_secret(folder)
    if found is None:
        found = secrets.token_bytes(_SECRET_BYTES)
        with atomic_path(folder / "secret", synced=True) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(found)
    return found


def drop_others(root: Path, running: Iterable[Experiment]) -> None:
    """Remove what is kept of tests that do not run any more.

    Args:
        root: the workspace.
        running: the tests that do.
    """
    kept = {_folder_of(root, experiment.plan.experiment) for experiment in running}
    for folder in (root / FOLDER).glob("*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


class Spools:
    """Spools partitions, or takes what was kept of them.

    Args:
        root: the workspace.
        location: of the logs.
        plan: of the running test, whose spools are kept; None: of no test, and nothing is kept.
        overrides: staff whose exposures do not count.
        settings: of ingestion.
    """

    def __init__(
        self,
        root: Path,
        location: str,
        plan: Plan | None,
        overrides: tuple[Override, ...],
        settings: Ingest,
    ) -> None:
        self._root, self._location, self._settings = root, location, settings
        self._plan, self._overrides = plan, overrides
        self._cache: PartitionCache | None = None
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        if plan is not None and settings.cache_bytes:
            folder = self._folder = _folder_of(root, plan.experiment)
            self._secret = _secret(folder)
            scope = {
                "code": code_version(Path(log_spool.__file__), Path(assignment.__file__)),
                "secret": bytes_digest(self._secret),
                "plan": plan.model_dump(mode="json"),
                "staff": sorted(item.user for item in overrides),
                "max_line_bytes": settings.max_line_bytes,
                "rename": settings.rename,
            }
            self._cache = PartitionCache(folder / "partitions", key_of(scope), settings.cache_bytes, _whole)

    def write(self, partitions: Sequence[Mapping[str, Any]], folder: Path) -> Counter[str]:
        """Write the spools of partitions: ``<number>/rows.parquet``, numbered in their order.

        Args:
            partitions: pinned ones.
            folder: a new one.

        Returns:
            what they hold, as :meth:`LogReader.counts`.

        Raises:
            LogsError: a partition is gone, changed or damaged.
        """
        total: Counter[str] = Counter()
        keys = []
        for number, partition in enumerate(partitions):
            place = folder / f"{number}"
            key = key_of({"path": partition["path"], "sha256": partition["sha256"]})
            keys.append(key)
            document = self._cache.get(key, place) if self._cache else None
            if document is None:
                document = self._spool(partition, place)
                # The test may have ended meanwhile, or somebody was forgotten: then there is nothing to be kept.
                if self._cache is not None and _read_secret(self._folder) == self._secret:
                    self._cache.put(key, place)
            total.update(document)
        if not partitions:
            (folder / "0").mkdir(parents=True)
            pq.write_table(SPOOL.empty_table(), folder / "0" / _ROWS)
        if self._cache is not None:
            self._cache.keep(keys)  # a file that has changed may hold less than it did
            self._cache.trim()
        return total

    def _spool(self, partition: Mapping[str, Any], place: Path) -> dict[str, Any]:
        reader = LogReader(self._plan, self._overrides, self._settings, self._secret)
        place.mkdir(parents=True)
        with pq.ParquetWriter(place / _ROWS, SPOOL) as writer:
            for rows in self._read(partition, reader):
                writer.write_table(rows)
        document = reader.counts()
        write_json(document, place / _DOCUMENT)
        return document

    def _read(self, partition: Mapping[str, Any], reader: LogReader) -> Iterator[pa.Table]:
        most = self._settings.max_line_bytes
        if not partition["path"].endswith(".parquet"):
            blocks = partition_blocks(self._location, self._root, partition, max_line_bytes=most)
            with ThreadPoolExecutor(THREADS) as pool:
                yield from in_order(pool, reader.lines, blocks)
            return
        first = 1
        for table in partition_tables(self._location, self._root, partition, self._settings.rename):
            yield reader.rows(table, first)
            first += table.num_rows
