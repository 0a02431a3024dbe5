"""Contradicting events as rows of the quarantine, read again from the runs of their partition, a run at a time."""

from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from flywheel_tasks.traffic.events import TYPES
from flywheel_tasks.traffic.partition import BATCH_ROWS, read_stream
from flywheel_tasks.traffic.repeats import Entry, places_in
from flywheel_tasks.traffic.schemas import RAW_CHARACTERS

Row = dict[str, Any]


def _rows_of(entry: Entry, kind: str, conflicts: np.ndarray, paths: Sequence[str]) -> Iterator[Row]:
    """Rows for contradicting events of one type, sorted by line: each run holds later lines than the one before."""
    for run in entry.document["runs"]:
        if run["type"] != kind:
            continue
        found: list[pa.RecordBatch] = []
        with pa.OSFile(str(entry.folder / run["file"])) as source, pa.ipc.open_file(source) as file:
            for k in range(file.num_record_batches):
                batch = file.get_batch(k)
                here = places_in(conflicts[0], batch.column("line").to_numpy()) >= 0
                if here.any():
                    found.append(batch.filter(pa.array(here)))
        if found:
            for batch in pa.Table.from_batches(found).sort_by("line").to_batches(BATCH_ROWS):
                yield from (_told(kind, row, conflicts, paths) for row in batch.to_pylist())


def _told(kind: str, row: Row, conflicts: np.ndarray, paths: Sequence[str]) -> Row:
    line = row.pop("line")
    _, first, at = conflicts[:, np.searchsorted(conflicts[0], line)].tolist()
    event = {"type": kind, **row}
    return {
        "line": line,
        "rule": "conflicting_duplicate",
        "detail": f"event_id {row['event_id']} has other content in {paths[first]} line {at}",
        "raw": orjson.dumps(event, option=orjson.OPT_UTC_Z).decode()[:RAW_CHARACTERS],
        "user_ids": [event["user_id"]] if event.get("user_id") else [],
    }


def refused_rows(entry: Entry, conflicts: np.ndarray, paths: Sequence[str]) -> Iterator[Row]:
    """Rows of the quarantine for one partition, without ``file``, sorted by line: refused lines and contradictions.

    Args:
        entry: the partition.
        conflicts: of the partition, as :class:`flywheel_tasks.traffic.repeats.Repeats` has them.
        paths: of all partitions, by number.
    """
    refused = (row for batch in read_stream(entry.folder / "quarantine.arrow") for row in batch.to_pylist())
    kinds = (_rows_of(entry, kind, conflicts, paths) for kind in TYPES)
    return merge(refused, *kinds, key=itemgetter("line"))
