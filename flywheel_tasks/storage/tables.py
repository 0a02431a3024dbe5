"""Parquet tables, written atomically."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.storage.atomic import atomic_path


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as one zstd-compressed Parquet file, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write rows as a Parquet table of a given schema (an empty list makes an empty table)."""
    write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def read_table(path: Path) -> pa.Table:
    """Read a whole Parquet table."""
    return pq.read_table(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a whole Parquet table as a list of rows."""
    return read_table(path).to_pylist()


def read_batches(
    path: Path, rows: int, columns: Sequence[str] | None = None, most_bytes: int = 1 << 26
) -> Iterator[pa.RecordBatch]:
    """Read a table in batches that are bounded by rows and by size.

    A batch never reaches over two row groups: a repeated text is stored once, so only the rows that were written
    together bound what a batch becomes in memory.

    Args:
        path: the Parquet table.
        rows: of a batch, at most.
        columns: which ones; None: all.
        most_bytes: of a batch, about, as the file counts its values; one row may have more.
    """
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            known = file.metadata.row_group(group)
            fit = most_bytes * known.num_rows // max(1, known.total_byte_size)
            yield from file.iter_batches(max(1, min(rows, fit)), row_groups=[group], columns=columns)
