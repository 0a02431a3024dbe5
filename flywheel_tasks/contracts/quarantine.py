"""What was set aside, with the place in the logs and the reason; and what was kept, in its order."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel_tasks.contracts.expectations import columns_of
from flywheel_tasks.contracts.model import Contract, Rule
from flywheel_tasks.contracts.relations import Broken, flaw
from flywheel_tasks.contracts.sql import ROW, Cleared, Database, literal, name
from flywheel_tasks.contracts.words import in_words
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.traffic.schemas import VALIDATION_QUARANTINE

_DETAIL = 300  # characters of a detail
SHOWN = 40  # characters of a value in it
_GROUP = 1 << 16  # rows of a row group
_BATCH = 1 << 13
_SET_ASIDE = "set_aside"


def collect(
    database: Database,
    contracts: Mapping[str, Contract],
    found: Sequence[Broken],
    origins: Path | None,
    files: Mapping[str, str],
) -> None:
    """Gather all that was set aside in one table of the database, with file, line and detail.

    Args:
        database: with every table as a view of its name.
        contracts: of the tables.
        found: what was set aside.
        origins: file and line of every event; None if the rows are in the files themselves.
        files: by table, the name of its own file, for rows without origins.
    """
    columns = ", ".join(f"{name(item.name)} {_sql_type(item.type)}" for item in VALIDATION_QUARANTINE)
    database.run(f"CREATE OR REPLACE TEMP TABLE {_SET_ASIDE} ({columns})")
    for broken in found:
        contract = contracts[broken.table]
        rules = {rule.name: rule for rule in (*contract.expectations(), *contract.relations())}
        others = broken.others if broken.others is not None else np.full(len(broken.rows), -1)
        database.put("broken", pa.table({ROW: broken.rows, "other": others}))
        select, join = _detail(rules[broken.rule], contract)
        database.run(
            f"INSERT INTO {_SET_ASIDE} SELECT {literal(broken.table)}, CAST(a.{name(contract.key)} AS VARCHAR), "  # noqa: S608
            f"{literal(files.get(broken.table, ''))}, a.{ROW} + 1, {literal(broken.rule)}, "
            f"left({select}, {_DETAIL}) FROM {name(broken.table)} a JOIN broken r ON a.{ROW} = r.{ROW} {join}"
        )
    if origins is not None:
        database.attach("origins", origins)
        database.run(
            f"CREATE OR REPLACE TEMP TABLE {_SET_ASIDE} AS "  # noqa: S608
            'SELECT "table", s.event_id, o.file, o.line, rule, detail '
            f"FROM {_SET_ASIDE} s LEFT JOIN origins o ON s.event_id = o.event_id"
        )


def _sql_type(kind: pa.DataType) -> str:
    return "BIGINT" if pa.types.is_integer(kind) else "VARCHAR"


def _detail(rule: Rule, contract: Contract) -> tuple[str, str]:
    """SQL of the reason, and what must be joined for it."""
    if (relation := rule.references) is not None:
        wanted = "".join(f" with {column} {value}" for column, value in sorted(relation.where.items()))
        there = f" is not among {relation.table}.{relation.target}{wanted}"
        absent = f"concat({literal(relation.column + ' ')}, a.{name(relation.column)}, {literal(there)})"
        why = f"CASE WHEN b.{ROW} IS NULL THEN {absent} ELSE coalesce(nullif({flaw(relation)}, 'where'), {absent}) END"
        return why, f"LEFT JOIN {name(relation.table)} b ON b.{ROW} = r.other"
    if (constant := rule.constant) is not None:
        words = literal(f" has several values of {constant.column}, here ")
        group = f", {literal(', ')}, ".join(f"{literal(f'{it} ')}, a.{name(it)}" for it in constant.within)
        return f"concat({group}, {words}, a.{name(constant.column)})", ""
    if (rooted := rule.rooted) is not None:
        it = rooted.within or rooted.target
        me = f"{literal(f'{it} ')}, a.{name(it)}"
        wanted = ", ".join(f"{column} {value}" for column, value in sorted(rooted.root_where.items()))
        roots = f" has {'a row with ' if rooted.within else ''}no {rooted.parent}, but not {wanted}"
        if rooted.sole_is_free:
            roots = f" has several rows with no {rooted.parent}, of which one has not {wanted}"
        words = roots if rooted.only == "roots" else f" leads to no first message through {rooted.parent}"
        return f"concat({me}, {literal(words)})", ""
    if (greatest := rule.greatest) is not None:
        group = f"{literal(f'{greatest.within} ')}, a.{name(greatest.within)}"
        words = literal(f" has a row with more {greatest.column} than here: ")
        return f"concat({group}, {words}, a.{name(greatest.column)})", ""
    shown = ", ', ', ".join(f"{literal(f'{column} is ')}, {_value(column)}" for column in columns_of(rule))
    return f"concat({shown}, {literal(f': {in_words(rule)}')})", ""


def _value(column: str) -> str:
    """SQL of a column's value, as it begins."""
    text = f"CAST(a.{name(column)} AS VARCHAR)"
    more = f"CASE WHEN length({text}) > {SHOWN} THEN '…' ELSE '' END"
    return (
        f"CASE WHEN {text} IS NULL THEN 'missing' ELSE concat('''', left({text}, {SHOWN}), {more}, '''') END"
    )


def ordered(database: Database) -> str:
    """The query of the quarantine, sorted by table, file and line."""
    columns = ", ".join(name(item.name) for item in VALIDATION_QUARANTINE)
    return (
        f"SELECT {columns} FROM {_SET_ASIDE} "  # noqa: S608
        "ORDER BY \"table\", coalesce(file, ''), coalesce(line, 0), coalesce(event_id, ''), rule"
    )


def examples(database: Database, most: int) -> list[dict[str, object]]:
    """The first rows of each rule, as the quarantine sorts them.

    Args:
        database: after :func:`collect`.
        most: rows a rule.
    """
    query = (
        f'SELECT * FROM ({ordered(database)}) QUALIFY row_number() OVER (PARTITION BY "table", rule '  # noqa: S608
        "ORDER BY coalesce(file, ''), coalesce(line, 0), coalesce(event_id, '')) <= "
        f"{int(most)} ORDER BY \"table\", rule, coalesce(file, ''), coalesce(line, 0), coalesce(event_id, '')"
    )
    columns = VALIDATION_QUARANTINE.names
    return [dict(zip(columns, row, strict=True)) for row in database.rows(query)]


def write_quarantine(database: Database, path: Path) -> int:
    """Write the quarantine.

    Returns:
        its rows.
    """
    return write_batches(database.batches(ordered(database)), VALIDATION_QUARANTINE, path)


def write_kept(source: Path, alive: np.ndarray, path: Path, cleared: Cleared | None = None) -> int:
    """Write the rows that are left, in their order. A file that keeps all its rows is copied as it is.

    Args:
        source: the table.
        alive: by row, whether it is left.
        path: where to.
        cleared: rows in which some columns count as missing.

    Returns:
        how many.
    """
    if cleared is not None and not len(cleared.rows):
        cleared = None
    if alive.all() and cleared is None:
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)
        return int(alive.size)
    with pq.ParquetFile(source) as file:

        def kept() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                mask = alive[start : start + batch.num_rows]
                if cleared is not None:
                    batch = _without(batch, cleared, start)
                start += batch.num_rows
                yield batch if mask.all() else batch.filter(pa.array(mask))

        return write_batches(kept(), file.schema_arrow, path)


def _without(batch: pa.RecordBatch, cleared: Cleared, start: int) -> pa.RecordBatch:
    """A batch, of which the first row has the number ``start``, without what counts as missing."""
    first, last = np.searchsorted(cleared.rows, (start, start + batch.num_rows))
    if first == last:
        return batch
    missing = np.zeros(batch.num_rows, bool)
    missing[cleared.rows[first:last] - start] = True
    for column in cleared.columns:
        at = batch.schema.get_field_index(column)
        values = pc.if_else(pa.array(missing), None, batch.column(at))
        batch = batch.set_column(at, batch.schema.field(at), values)
    return batch


def write_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Write batches as a Parquet table whose bytes do not depend on how the rows were batched.

    Args:
        batches: rows, in order.
        schema: of the table.
        path: where to.

    Returns:
        number of rows.
    """
    count = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        pending: list[pa.RecordBatch] = []
        waiting = 0
        for batch in batches:
            pending.append(batch)
            waiting += batch.num_rows
            count += batch.num_rows
            while waiting >= _GROUP:
                table = pa.Table.from_batches(pending).cast(schema)
                writer.write_table(table.slice(0, _GROUP))
                rest = table.slice(_GROUP)
                pending, waiting = rest.to_batches(), rest.num_rows
        if waiting or not count:
            writer.write_table(
                pa.Table.from_batches(pending, schema=pending[0].schema if pending else schema).cast(schema)
            )
    return count
