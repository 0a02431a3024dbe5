"""Rows that break an expectation, found by the table engine in one pass over the file."""

import numpy as np
import pyarrow as pa

from flywheel_tasks.contracts.expectations import Compiled, compile_rule
from flywheel_tasks.contracts.model import Contract
from flywheel_tasks.contracts.sql import ROW, Database, name


def broken_by_expectations(
    database: Database, contract: Contract, view: str | None = None
) -> list[tuple[str, np.ndarray]]:
    """Rows of a table that break an expectation, each under the first one it breaks.

    Args:
        database: with the table as a view of its name.
        contract: of the table.
        view: another name of the view.

    Returns:
        rule and sorted row numbers (int64), in the order of the rules; every rule is there.
    """
    view = view or contract.table
    rules = contract.expectations()
    conditions = []
    for number, rule in enumerate(rules):
        compiled = compile_rule(rule, contract)
        broken = compiled.broken
        if broken is None:
            broken = _repeated(database, view, compiled, number)
        conditions.append(f"coalesce(({compiled.where}) AND ({broken}), false)")
    if not rules:
        return []
    cases = " ".join(f"WHEN {condition} THEN {number}" for number, condition in enumerate(conditions))
    query = (
        f"SELECT {ROW}, verdict FROM (SELECT {ROW}, CASE {cases} END AS verdict FROM {name(view)}) "  # noqa: S608
        "WHERE verdict IS NOT NULL"
    )
    rows, verdicts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in database.batches(query):
        rows.append(batch.column(0).to_numpy())
        verdicts.append(batch.column(1).to_numpy().astype(np.int64))
    row, verdict = np.concatenate(rows), np.concatenate(verdicts)
    return [(rule.name, np.sort(row[verdict == number])) for number, rule in enumerate(rules)]


def _repeated(database: Database, view: str, compiled: Compiled, number: int) -> str:
    """The condition of rows whose values occur more than once.

    Values are first counted by their hash, which takes a fraction of the memory; then the few with a hash that
    occurs again are counted themselves.
    """
    columns = ", ".join(map(name, compiled.unique))
    whole = " AND ".join(f"{name(column)} IS NOT NULL" for column in compiled.unique)
    rows = f"{name(view)} WHERE ({compiled.where}) AND {whole}"
    hashes, table = f"hashes_{number}", f"repeated_{number}"
    database.run(
        f"CREATE OR REPLACE TEMP TABLE {hashes} AS SELECT hash({columns}) AS hash FROM {rows} "  # noqa: S608
        "GROUP BY 1 HAVING count(*) > 1"
    )
    database.run(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {columns} FROM {rows} "  # noqa: S608
        f"AND hash({columns}) IN (SELECT hash FROM {hashes}) GROUP BY {columns} HAVING count(*) > 1"
    )
    if database.one(f"SELECT count(*) FROM {table}") == (0,):  # noqa: S608
        return "false"
    return f"({columns}) IN (SELECT ({columns}) FROM {table})"  # noqa: S608


def row_table(rows: np.ndarray) -> pa.Table:
    """Row numbers as a table with the column ``_row``."""
    return pa.table({ROW: pa.array(rows, pa.int64())})
