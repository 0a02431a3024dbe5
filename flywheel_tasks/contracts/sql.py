"""Names and values as SQL text, and the one place where the table engine is opened."""

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from flywheel_tasks.storage.engine import threads_within

ROW = "_row"  # number of a row in its file, from 0
_BATCH = 1 << 16
_THREAD_MB = 125  # buffers of a thread, which cannot be spilled, and its share of the rest


@dataclass(frozen=True)
class Cleared:
    """Rows in which some columns count as missing, whatever the file says.

    Attributes:
        columns: which.
        rows: their numbers, sorted.
    """

    columns: tuple[str, ...]
    rows: np.ndarray


def name(identifier: str) -> str:
    """A quoted identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value as a literal.

    Raises:
        ValueError: it is no scalar.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value!r}::DOUBLE"
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text with a zero character cannot be compared")
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, datetime):
        return f"'{value.isoformat()}'::TIMESTAMPTZ"
    if isinstance(value, date):
        return f"'{value.isoformat()}'::DATE"
    raise ValueError(f"{value!r} is no text, number, date or truth value")


def matching(where: Mapping[str, Any], of: str = "") -> str:
    """The condition that all columns have these values."""
    prefix = f"{of}." if of else ""
    parts = [f"{prefix}{name(column)} = {literal(value)}" for column, value in where.items()]
    return " AND ".join(parts) or "true"


class Database:
    """DuckDB in memory, bounded, spilling to a folder; it reads Parquet files and downloads nothing.

    Args:
        scratch: folder for what does not fit into memory.
        memory_mb: what DuckDB may hold (MB).
        threads: of DuckDB; by default one a core, as far as the memory is enough for so many.
    """

    def __init__(self, scratch: Path, memory_mb: int, threads: int | None = None) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": str(scratch),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",  # what needs an order says so
            "threads": str(threads or threads_within(memory_mb, _THREAD_MB)),
        }
        self.connection = duckdb.connect(config=config)
        # A Parquet file's statistics leave NaN out; with them, `isnan` is taken for false where it is not.
        self.connection.execute("SET disabled_optimizers = 'statistics_propagation'")

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def attach(self, view: str, path: Path, cleared: Cleared | None = None) -> None:
        """Make a Parquet file a view, with its row numbers as ``_row``."""
        source = literal(glob.escape(str(path)))
        replaced = ""
        if cleared is not None:
            self.put(f"cleared {view}", pa.table({ROW: pa.array(cleared.rows, pa.int64())}))
            missing = f"file_row_number IN (SELECT {ROW} FROM {name(f'cleared {view}')})"  # noqa: S608
            cases = [
                f"CASE WHEN {missing} THEN NULL ELSE {it} END AS {it}" for it in map(name, cleared.columns)
            ]
            replaced = f"REPLACE ({', '.join(cases)}) "
        self.run(
            f"CREATE OR REPLACE TEMP VIEW {name(view)} AS SELECT * EXCLUDE file_row_number {replaced}, "  # noqa: S608
            f"file_row_number AS {ROW} FROM read_parquet({source}, file_row_number=true)"
        )

    def run(self, query: str) -> None:
        """Run a statement."""
        self.connection.execute(query)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a small result."""
        return self.connection.execute(query).fetchall()

    def one(self, query: str) -> tuple[Any, ...]:
        """The only row of a result."""
        (row,) = self.rows(query)
        return row

    def batches(self, query: str, size: int = _BATCH) -> Iterator[pa.RecordBatch]:
        """A result in batches, in whatever order it comes unless the query has one."""
        yield from self.connection.sql(query).to_arrow_reader(size)

    def put(self, table: str, rows: pa.Table) -> None:
        """Copy a table into a temporary one of the database."""
        self.connection.register("_incoming", rows)
        self.run(f"CREATE OR REPLACE TEMP TABLE {name(table)} AS SELECT * FROM _incoming")  # noqa: S608
        self.connection.unregister("_incoming")
