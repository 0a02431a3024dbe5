"""Parquet tables, written atomically."""

from collections.abc import Sequence
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
