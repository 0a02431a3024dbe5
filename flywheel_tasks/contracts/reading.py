"""Finds the tables in a file or folder that somebody wants to check, and makes Parquet of JSON Lines."""

import fnmatch
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.contracts.model import Contract, ContractError
from flywheel_tasks.contracts.quarantine import SHOWN, write_batches
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.storage.documents import json_flaw, numbered_lines

_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
_BATCH = 20_000
_NO_VALUE = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError)  # a value does not fit its column
_EVENT = {"type", "event_id", "source"}  # not the time, which logs often have under another name
NO_ROW = "no_row"


@dataclass(frozen=True)
class Unreadable:
    """A line that is no row of its table.

    Attributes:
        table: the table.
        file: the file.
        line: from 1.
        detail: what is wrong.
        rule: of ingestion, that it breaks; of a table's line the only one.
    """

    table: str
    file: str
    line: int
    detail: str
    rule: str = NO_ROW


@dataclass(frozen=True)
class Found:
    """A table to check.

    Attributes:
        table: its contract's name.
        source: the file that was given.
        path: the same as Parquet.
        unreadable: lines that are no rows.
    """

    table: str
    source: Path
    path: Path
    unreadable: list[Unreadable]


def is_raw_log(path: Path) -> bool:
    """Whether a path holds raw log events: ``date=`` folders, or a file of events."""
    if path.is_dir():
        return path.name.startswith("date=") or any(item.name.startswith("date=") for item in path.iterdir())
    if not path.name.endswith(_ENDINGS):
        return False
    if path.absolute().parent.name.startswith("date="):
        return True
    if path.name.endswith(".parquet"):
        return set(_parquet_schema(path).names) >= _EVENT
    first = next((row for _, row in _lines(path) if isinstance(row, dict)), {})
    return set(first) >= _EVENT


def find_tables(
    path: Path, contracts: Mapping[str, Contract], table: str | None, scratch: Path
) -> list[Found]:
    """The tables of a file or folder.

    Args:
        path: a Parquet or JSON Lines file, or a folder of such.
        contracts: known contracts.
        table: the contract of a single file; by default found by its name or columns.
        scratch: for converted files.

    Raises:
        ContractError: nothing there has a known contract.
    """
    if table is not None and table not in contracts:
        raise ContractError(f"there is no contract for table {table}; known are {', '.join(contracts)}")
    if not path.exists():
        raise ContractError(f"{path}: there is no such file or folder")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith(_ENDINGS))
    found = []
    for file in files:
        name = table or _table_of(file, contracts)
        if name is not None:
            found.append(as_parquet(name, file, contracts[name], scratch))
    if not found:
        what = "has the columns or the name of no known table" if path.is_file() else "holds no known table"
        near = _nearest(path, contracts) if path.is_file() else ""
        raise ContractError(
            f"{path}: {what}{near}; tables are {', '.join(contracts)}. Name one with --table; "
            "`flywheel contracts describe` shows their columns"
        )
    return found


def _nearest(path: Path, contracts: Mapping[str, Contract]) -> str:
    """What keeps a file from being the table that it is most like, if it is like one at all."""
    if not path.name.endswith(_ENDINGS):
        return f": only {', '.join(_ENDINGS)} are read"
    if not (columns := _columns(path)):
        return ": it has no rows" if path.stat().st_size == 0 else ": it has no columns"
    table, of = max(
        contracts.items(),
        key=lambda item: len(columns & set(item[1].columns)) / len(columns | set(item[1].columns)),
    )
    if 2 * len(columns & set(of.columns)) < len(of.columns):
        return ""
    absent, other = sorted(set(of.columns) - columns), sorted(columns - set(of.columns))
    return (
        f": it is most like {table}, but lacks {', '.join(absent) or 'nothing'} and has also "
        f"{', '.join(other) or 'nothing'}"
    )


def _table_of(file: Path, contracts: Mapping[str, Contract]) -> str | None:
    """The contract that a file's place names, else the one with its columns, else one with its name."""
    tail = "/".join(file.resolve().parts[-3:])
    by_place = [
        table for table, of in contracts.items() if any(fnmatch.fnmatch(tail, f"*{p}") for p in of.paths)
    ]
    columns = _columns(file)
    by_columns = [table for table, of in contracts.items() if set(of.columns) == columns]
    stem = file.name.split(".")[0]
    by_name = [stem] if stem in contracts else []
    for candidates in (by_place, by_columns, by_name):
        if candidates:
            return candidates[0]
    return None


def _columns(file: Path) -> set[str]:
    if file.name.endswith(".parquet"):
        return set(_parquet_schema(file).names)
    return set(next((row for _, row in _lines(file) if isinstance(row, dict)), {}))


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ContractError(f"{file}: not a Parquet file: {error}") from error


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers, and what each line holds or the error that it is.

    Raises:
        ContractError: the gzip is damaged: what is missing can't be counted, so nothing is said of the rest.
    """
    try:
        yield from _read_lines(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ContractError(f"{file}: a damaged gzip file: {error}") from error


def _read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as raw:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if file.name.endswith(".gz") else raw
        for number, line in numbered_lines(stream):
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield number, ValueError(f"not JSON: {json_flaw(error)}")


def as_parquet(table: str, file: Path, contract: Contract, scratch: Path) -> Found:
    """A table as Parquet: the file itself, or what JSON Lines become, with the lines that are no rows.

    Args:
        table: its name.
        file: the file.
        contract: of the table.
        scratch: for a converted file.
    """
    if file.name.endswith(".parquet"):
        _parquet_schema(file)
        return Found(table, file, file, [])
    unreadable: list[Unreadable] = []
    schema = arrow_schema(contract)

    def batch(rows: list[tuple[int, dict[str, Any]]]) -> pa.RecordBatch:
        try:
            return pa.RecordBatch.from_pylist([row for _, row in rows], schema=schema)
        except _NO_VALUE:  # of at least one row: each is looked at
            fitting = []
            for number, row in rows:
                if wrong := [field.name for field in schema if not _fits(row[field.name], field.type)]:
                    detail = f"{', '.join(wrong)}: a value has not its column's type"
                    unreadable.append(Unreadable(table, str(file), number, detail))
                else:
                    fitting.append(row)
            return pa.RecordBatch.from_pylist(fitting, schema=schema)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = []
        for number, value in _lines(file):
            try:
                rows.append((number, _row(value, contract)))
            except ValueError as error:
                unreadable.append(Unreadable(table, str(file), number, str(error)))
            if len(rows) >= _BATCH:
                yield batch(rows)
                rows = []
        if rows:
            yield batch(rows)

    path = scratch / f"{file.name}.parquet"
    write_batches(batches(), schema, path)
    return Found(table, file, path, sorted(unreadable, key=lambda it: it.line))


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], type=kind)
    except _NO_VALUE:
        return False
    return True


def _row(value: Any, contract: Contract) -> dict[str, Any]:
    """A line as a row of the table.

    Raises:
        ValueError: it is none; the text says why.
    """
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(set(value) - set(contract.columns)):
        raise ValueError(f"unknown columns: {', '.join(unknown)}")
    return {name: _value(name, of.type, value.get(name)) for name, of in contract.columns.items()}


def _begin(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _value(name: str, kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if kind.startswith("timestamp"):
        try:
            time = datetime.fromisoformat(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {_begin(value)}, no ISO 8601 time") from error
        if time.tzinfo is None:
            raise ValueError(f"{name} is {_begin(value)}, without a time zone")
        return time
    if kind.startswith("list<"):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        return [_value(name, kind[5:-1], item) for item in value]
    if kind.startswith("struct<"):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is no object")
        return value
    fits: tuple[type, ...] = {"string": (str,), "int64": (int,), "bool": (bool,), "double": (int, float)}[
        kind
    ]
    if not isinstance(value, fits) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"{name} is {value!r}, no {kind}")
    return value
