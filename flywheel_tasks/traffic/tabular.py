"""Rows of a Parquet partition as columns of the log format."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.traffic.events import FIELDS

_BATCH_ROWS = 16_384
_KNOWN = ["type", *dict.fromkeys(name for fields in FIELDS.values() for name in fields)]
_LISTS = ("traits", "instructions")


class TabularError(ValueError):
    """A partition is no Parquet file, or a column of it cannot hold the field of its name."""


def _as_strings(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if name == "time" and pa.types.is_timestamp(kind):
        return column
    texts = (pa.types.is_null, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if any(is_text(kind) for is_text in texts):
        return column.cast(pa.string())
    also = " or a timestamp" if name == "time" else ""
    raise TabularError(f"column {name} is {kind}, it must be a string{also}")


def read_tables(file: BinaryIO, rename: Mapping[str, str]) -> Iterator[pa.Table]:
    """Read a Parquet partition.

    Args:
        file: at its start.
        rename: old field names to new ones: their columns are those of fields, too.

    Yields:
        tables of a bounded number of rows: every field of the format (but lists) as strings, absent ones as nulls; a
        time may be a timestamp; other columns as they are.

    Raises:
        TabularError: it is no Parquet file, or a column has a type that the field cannot have.
    """
    try:
        source = pq.ParquetFile(file)
        names = source.schema_arrow.names
        if len(set(names)) < len(names):
            raise TabularError("two columns have one name")
        for batch in source.iter_batches(_BATCH_ROWS, use_threads=False):
            yield _table(pa.Table.from_batches([batch]), rename)
    except pa.ArrowException as error:
        raise TabularError(f"not a Parquet file that can be read: {error}") from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a type that rows can be picked from; Arrow has no such function for views."""
    if pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    return column.cast(pa.binary()) if pa.types.is_binary_view(column.type) else column


def _table(table: pa.Table, rename: Mapping[str, str]) -> pa.Table:
    columns = {name: _plain(table[name]) for name in table.column_names}
    old = [name for name, new in rename.items() if new not in _LISTS]
    for name in [*_KNOWN, *old]:
        if name in columns and name not in _LISTS:
            columns[name] = _as_strings(columns[name], rename.get(name, name))
        elif name in _KNOWN and name not in _LISTS:
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return pa.table(columns)


def decoded(table: pa.Table, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Rows as decoded events: a null is an absent field, a time is written out."""
    found = []
    for row in table.take(pa.array(rows, pa.int64())).to_pylist():
        event = {name: value for name, value in row.items() if value is not None}
        if hasattr(event.get("time"), "isoformat"):
            event["time"] = event["time"].isoformat()
        found.append(event)
    return found
