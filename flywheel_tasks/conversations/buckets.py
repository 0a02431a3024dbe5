"""Rows of a table too big for memory, put apart by ranges of an id: each range fits, and ranges are in order."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel_tasks.storage.tables import read_batches

_SAMPLE = 100_000  # ids that the ranges are chosen from
_OPEN = 256  # files open at once; with more ranges the table is read several times
_BATCH_ROWS = 65_536


def boundaries(path: Path, column: str, rows_a_bucket: int, text: str, bytes_a_bucket: int) -> list[str]:
    """Ids that cut a table into ranges of about equal numbers of rows, a long row counted as several.

    Args:
        path: the Parquet table.
        column: of the ids.
        rows_a_bucket: rows wanted in each range, at most.
        text: column of long strings.
        bytes_a_bucket: of these strings wanted in each range, at most.

    Returns:
        first id of every range but the first one, sorted.
    """
    step = max(1, pq.read_metadata(path).num_rows // _SAMPLE)
    sample, weights = [], []
    for batch in read_batches(path, _BATCH_ROWS, [column, text]):
        size = pc.binary_length(batch.column(text)).fill_null(0).to_numpy(zero_copy_only=False)
        weight = np.maximum(1, size * (rows_a_bucket / bytes_a_bucket))
        # A row of the sample stands for those up to the next one.
        at = np.arange(0, batch.num_rows, step)
        sample.append(batch.column(column).take(pa.array(at)))
        weights.append(np.add.reduceat(weight, at))
    whole = float(sum(part.sum() for part in weights))
    wanted = math.ceil(whole / rows_a_bucket)
    if wanted < 2:
        return []
    ids = pa.chunked_array(sample).combine_chunks()
    order = pc.sort_indices(ids)
    ends = np.cumsum(np.concatenate(weights)[order.to_numpy()])
    at = np.searchsorted(ends, np.arange(1, wanted) * whole / wanted, "right")
    return sorted(set(ids.take(order).take(pa.array(np.minimum(at, len(ids) - 1))).to_pylist()))


class Buckets:
    """A table's rows by range, in files of a scratch folder.

    Args:
        source: the Parquet table.
        column: of the ids; all rows of one id are in one bucket.
        cuts: of :func:`boundaries`.
        folder: for the files; they are removed as they are read.
    """

    def __init__(self, source: Path, column: str, cuts: Sequence[str], folder: Path) -> None:
        self._source, self._column, self._cuts, self._folder = source, column, list(cuts), folder
        self.schema = pq.read_schema(source)
        if cuts:
            self._spill()

    def __len__(self) -> int:
        return len(self._cuts) + 1

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{self._source.stem}-{bucket}.arrow"

    def _spill(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        for first in range(0, len(self), _OPEN):
            with ExitStack() as stack:
                files = {
                    k: stack.enter_context(pa.ipc.new_stream(self._path(k), self.schema, options=options))
                    for k in range(first, min(first + _OPEN, len(self)))
                }
                for batch in read_batches(self._source, _BATCH_ROWS):
                    for bucket, rows in self._split(batch):
                        if bucket in files:
                            files[bucket].write_batch(rows)

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """A batch's rows by bucket, in their order."""
        ids = batch.column(batch.schema.get_field_index(self._column)).dictionary_encode()
        of_id = np.array([bisect_right(self._cuts, value) for value in ids.dictionary.to_pylist()], np.int64)
        bucket = of_id[ids.indices.to_numpy()]
        order = np.argsort(bucket, kind="stable")
        rows, bucket = batch.take(pa.array(order)), bucket[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(bucket)), strict=True):
            yield int(bucket[start]), rows.slice(start, end - start)

    def read(self, bucket: int) -> pa.Table:
        """The rows of one bucket."""
        if not self._cuts:
            return pq.read_table(self._source, use_threads=False)
        path = self._path(bucket)
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        path.unlink()
        return table
