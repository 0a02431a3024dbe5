"""Sorted runs of many partitions to one sorted table, in memory that does not grow with them."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.conflicts import refused_rows
from flywheel_tasks.traffic.events import TABLE_OF
from flywheel_tasks.traffic.partition import BATCH_ROWS, REFUSED, read_stream
from flywheel_tasks.traffic.repeats import Entry, Repeats, places_in
from flywheel_tasks.traffic.schemas import INGEST_QUARANTINE, ORIGINS, TABLES

_ROWS = 65_536  # rows merged at once: a row group
_AHEAD = 2
# Columns with few different values; the others are not worth a dictionary.
_FEW_VALUES = ["source", "role", "card_id", "model", "signal", "experiment", "arm", "file", "rule"]

Key = tuple[int, str]  # time in microseconds, event id


class _Run:
    """Reads a run from its start to its end, up to one key after another."""

    def __init__(self, entry: Entry, document: Mapping[str, Any], dropped: np.ndarray | None) -> None:
        self.entry = entry
        self.firsts: list[Key] = [(time, key) for time, key in document["firsts"]]
        self.rows: int = document["rows"]
        self._path = entry.folder / document["file"]
        self._dropped = dropped
        self._next = 0
        self._left: pa.RecordBatch | None = None

    @property
    def done(self) -> bool:
        """Whether all rows were given out."""
        return self._left is None and self._next >= len(self.firsts)

    def until(self, end: Key | None) -> Iterator[pa.RecordBatch]:
        """The rows below ``end`` that were not given out yet."""
        if self._left is None and (
            self._next >= len(self.firsts) or not _below(self.firsts[self._next], end)
        ):
            return
        with pa.OSFile(str(self._path)) as source:
            file = pa.ipc.open_file(source)
            while True:
                batch, self._left = self._left, None
                if batch is None:
                    if self._next >= len(self.firsts) or not _below(self.firsts[self._next], end):
                        return
                    batch = _kept(file.get_batch(self._next), self._dropped)
                    self._next += 1
                whole = self._next < len(self.firsts) and _below(self.firsts[self._next], end)
                cut = batch.num_rows if whole or end is None else _rows_below(batch, end)
                if cut:
                    yield batch.slice(0, cut)
                if cut < batch.num_rows:
                    self._left = batch.slice(cut)
                    return


def _kept(batch: pa.RecordBatch, dropped: np.ndarray | None) -> pa.RecordBatch:
    if dropped is None:
        return batch
    return batch.filter(pa.array(places_in(dropped, batch.column("line").to_numpy()) < 0))


def _below(key: Key, end: Key | None) -> bool:
    return end is None or key < end


def _rows_below(batch: pa.RecordBatch, end: Key) -> int:
    """Number of rows of a sorted batch below a key."""
    time = batch.column("time").cast(pa.int64()).to_numpy()
    low, high = np.searchsorted(time, end[0], "left"), np.searchsorted(time, end[0], "right")
    ids = batch.column("event_id").slice(low, high - low)
    # Arrow and Python order strings alike: by code point.
    return int(low) + bisect_left(range(len(ids)), end[1], key=lambda k: ids[k].as_py())


def _ends(runs: Sequence[_Run]) -> list[Key | None]:
    """Keys that cut all rows into ranges of about ``_ROWS`` rows; None is the end."""
    firsts = sorted(
        (key, min(BATCH_ROWS, run.rows - k * BATCH_ROWS)) for run in runs for k, key in enumerate(run.firsts)
    )
    ends: list[Key | None] = []
    rows = 0
    for key, count in firsts:
        if rows >= _ROWS and (not ends or key != ends[-1]):
            ends.append(key)
            rows = 0
        rows += count
    return [*ends, None]


def _merged(runs: Sequence[_Run], schema: pa.Schema) -> Iterator[pa.Table]:
    """Sorted slices of a table."""
    waiting = sorted(runs, key=lambda run: run.firsts[0])
    for end in _ends(runs):
        batches: list[pa.RecordBatch] = []
        for run in waiting:
            if not _below(run.firsts[0], end):
                break
            batches += run.until(end)
        waiting = [run for run in waiting if not run.done]
        if batches:
            rows = pa.Table.from_batches(batches).select(schema.names)
            yield rows.sort_by([("time", "ascending"), ("event_id", "ascending")]).combine_chunks()


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, made in a thread while earlier ones are used."""
    made: deque[Future[pa.Table | None]] = deque()
    with ThreadPoolExecutor(1) as pool:
        while True:
            while len(made) < _AHEAD:
                made.append(pool.submit(next, tables, None))
            table = made.popleft().result()
            if table is None:
                return
            yield table


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    few = [name for name in _FEW_VALUES if name in schema.names]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=few)


def write_events(kind: str, entries: Sequence[Entry], repeats: Repeats, out: Path) -> int:
    """Write the table of one event type, sorted by time and event id.

    Args:
        kind: the event type.
        entries: the partitions.
        repeats: rows that are left out.
        out: folder of the table.

    Returns:
        rows written.
    """
    schema = TABLES[TABLE_OF[kind]]
    runs = [
        _Run(entry, document, repeats.dropped.get(entry.number))
        for entry in entries
        for document in entry.document["runs"]
        if document["type"] == kind
    ]
    rows = 0
    with _writer(out / f"{TABLE_OF[kind]}.parquet", schema) as file:
        for table in _ahead(_merged(runs, schema)):
            file.write_table(table)
            rows += table.num_rows
    return rows


def write_origins(entries: Sequence[Entry], repeats: Repeats, out: Path) -> None:
    """Write file and line of every kept event, sorted by file and line."""
    with _writer(out / "origins.parquet", ORIGINS) as file:
        for entry in entries:
            dropped = repeats.dropped.get(entry.number)
            pending: list[pa.RecordBatch] = []
            for batch in read_stream(entry.folder / "origins.arrow"):
                pending.append(_kept(batch, dropped))
                if sum(rows.num_rows for rows in pending) >= _ROWS:
                    file.write_table(_placed(pending, entry.path))
                    pending = []
            if pending:
                file.write_table(_placed(pending, entry.path))


def _placed(batches: Sequence[pa.RecordBatch], path: str) -> pa.Table:
    rows = pa.Table.from_batches(batches)
    file = pa.repeat(pa.scalar(path), rows.num_rows)
    return pa.Table.from_arrays([rows["event_id"], file, rows["line"]], schema=ORIGINS)


def _refused(entry: Entry, repeats: Repeats, paths: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of the quarantine for one partition, without ``file``, sorted by line."""
    conflicts = repeats.conflicts.get(entry.number)
    if conflicts is None:
        for batch in read_stream(entry.folder / "quarantine.arrow"):
            yield pa.Table.from_batches([batch])
        return
    rows = refused_rows(entry, conflicts, paths)
    while some := list(islice(rows, BATCH_ROWS)):
        yield pa.Table.from_pylist(some, schema=REFUSED)


def write_quarantine(entries: Sequence[Entry], repeats: Repeats, out: Path) -> int:
    """Write the refused lines and the contradicting events, sorted by file and line.

    Args:
        entries: the partitions, in the order of their paths.
        repeats: which events contradict others.
        out: folder of the table.

    Returns:
        rows written.
    """
    count, paths = 0, [entry.path for entry in entries]
    with _writer(out / "quarantine.parquet", INGEST_QUARANTINE) as file:
        for entry in entries:
            for table in _refused(entry, repeats, paths):
                path = pa.repeat(pa.scalar(entry.path), table.num_rows)
                file.write_table(table.add_column(0, INGEST_QUARANTINE.field("file"), path))
                count += table.num_rows
    return count
