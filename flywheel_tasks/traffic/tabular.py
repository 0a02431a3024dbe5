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
        TabularError: it is no Parquet file or a damaged one, or a column has a type that the field cannot have.
    """
    first, what = 1, "not a Parquet file that can be read"
    try:
        source = pq.ParquetFile(file)
        names = source.schema_arrow.names
        if len(set(names)) < len(names):
            raise TabularError("two columns have one name")
        what = "damaged, beyond row 0"
        for batch in source.iter_batches(_BATCH_ROWS, use_threads=False):
            _check_values(batch, first)
            yield _table(pa.Table.from_batches([batch]), rename)
            first += batch.num_rows
            what = f"damaged, beyond row {first - 1}"
    # Arrow tells of damaged pages as of a failing disk.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TabularError(f"{what}: {' '.join(str(error).split())}") from error


def _check_values(batch: pa.RecordBatch, first: int) -> None:
    """Arrow itself lets texts pass that are not UTF-8, and fails where one is first used."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            rows = f"rows {first} to {first + batch.num_rows - 1}"
            raise TabularError(f"damaged: column {name}, in {rows}: {error}") from error


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


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ArithmeticError, LookupError, ValueError):  # a year beyond 9999, a time zone that is none
        if pa.types.is_timestamp(scalar.type):
            return f"{scalar.value} {scalar.type.unit} since 1970"
        return f"a {scalar.type} that cannot be read"


def _values(column: pa.ChunkedArray) -> list[Any]:
    """What a column holds; what Python has no value for is told as text, which no rule takes for a good value."""
    try:
        values: list[Any] = column.to_pylist()
    except (ArithmeticError, LookupError, ValueError):
        values = [_value(scalar) for scalar in column]
    return values


def decoded(table: pa.Table, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Rows as decoded events: a null is an absent field, a time is written out."""
    found = []
    wanted = table.take(pa.array(rows, pa.int64()))
    columns = [_values(column) for column in wanted.columns]
    for row in zip(*columns, strict=True):
        event = {
            name: value for name, value in zip(table.column_names, row, strict=True) if value is not None
        }
        if hasattr(event.get("time"), "isoformat"):
            event["time"] = event["time"].isoformat()
        found.append(event)
    return found
