"""Holds what a stage writes to its contract, before it appears.

Logs come from others, so ``validate`` sets their broken rows aside. A table that a stage of this system made has no
row to set aside: a broken one is a defect of the stage, so it stops, and its outputs never appear
(:mod:`flywheel_tasks.pipeline.stage`). Great Expectations is not needed for it: row rules are compiled to the table
engine, and of a table rule's number only the bounds are looked at.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Allowed, Contract, ContractError, References
from flywheel_tasks.contracts.profile import profile_table
from flywheel_tasks.contracts.reading import Found, as_parquet
from flywheel_tasks.contracts.relations import Broken, Relations
from flywheel_tasks.contracts.rows import broken_by_expectations
from flywheel_tasks.contracts.schema import check_schema
from flywheel_tasks.contracts.sql import ROW, Database, name
from flywheel_tasks.contracts.tables import Measured, NotApplicable, measure

_SHOWN = 3  # rows of each rule that a message names
_ALONE = "not applicable: only this table is looked at"


@dataclass(frozen=True)
class _Table:
    """A table that a stage writes or reads.

    Attributes:
        contract: its contract.
        shown: its path in the workspace, for messages.
        path: where it is now.
    """

    contract: Contract
    shown: str
    path: Path


def enforce(
    written: Mapping[str, Path], read: Mapping[str, Path], folder: Path, scratch: Path, memory_mb: int
) -> list[str]:
    """Check every table that a stage wrote and that has a contract.

    Args:
        written: the stage's outputs, files or folders, by their path in the workspace.
        read: its inputs, in the same way: what references may lead to.
        folder: of the contracts.
        scratch: a folder for what does not fit into memory.
        memory_mb: bound of the table engine (MB).

    Returns:
        the tables checked, by their path in the workspace.

    Raises:
        ContractError: a table breaks its contract; the message names table, rows and rule, never a text.
    """
    contracts = load_contracts(folder)
    tables = _tables(written, contracts)
    near = [*tables, *_tables(read, contracts)]
    problems = []
    for table in tables:
        problems += _problems(table, near, contracts, folder, scratch, memory_mb)
    if problems:
        raise ContractError(f"{folder}: contracts broken; nothing was written:\n" + "\n".join(problems))
    return [table.shown for table in tables]


def _tables(places: Mapping[str, Path], contracts: Mapping[str, Contract]) -> list[_Table]:
    """Files at a path that a contract names, sorted."""
    found = []
    for place, path in places.items():
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        for file in files:
            shown = place if file == path else f"{place}/{file.relative_to(path).as_posix()}"
            if (contract := contract_of(shown, contracts)) is not None:
                found.append(_Table(contract, shown, file))
    return sorted(found, key=lambda table: table.shown)


def contract_of(path: str, contracts: Mapping[str, Contract]) -> Contract | None:
    """The contract of a path in the workspace, if it has one."""
    for contract in contracts.values():
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in contract.paths):
            return contract
    return None


def _problems(
    table: _Table,
    near: Sequence[_Table],
    contracts: Mapping[str, Contract],
    folder: Path,
    scratch: Path,
    memory_mb: int,
) -> list[str]:
    """What is wrong with one table, in words."""
    contract = table.contract
    scratch.mkdir(parents=True, exist_ok=True)
    found = _converted(table, scratch)
    if found.unreadable:
        return _unreadable(table, found)
    with pq.ParquetFile(found.path) as file:
        check_schema(contract, file.schema_arrow, Path(table.shown))
        rows = file.metadata.num_rows
    with Database(scratch, memory_mb) as database:
        database.attach(contract.table, found.path)
        alive, known = {contract.table: np.ones(rows, bool)}, {contract.table: contract}
        for other in _referred(table, near, contracts):
            beside = _converted(other, scratch)
            if beside.unreadable:  # a row that is referred to may be among them
                raise ContractError("\n".join(_unreadable(other, beside)))
            at = beside.path
            database.attach(other.contract.table, at)
            alive[other.contract.table] = np.ones(pq.read_metadata(at).num_rows, bool)
            known[other.contract.table] = _without_relations(other.contract)
        broken = [
            Broken(contract.table, rule, at)
            for rule, at in broken_by_expectations(database, contract)
            if len(at)
        ]
        broken += Relations(database, known, alive).settle()
        return [_said(database, table, item) for item in broken] + _broken_table_rules(
            database, table, rows, broken
        )


def _converted(table: _Table, scratch: Path) -> Found:
    return as_parquet(table.contract.table, table.path, table.contract, scratch / table.contract.table)


def _unreadable(table: _Table, found: Found) -> list[str]:
    """The lines that are no rows, for people."""
    return [
        f"{table.shown}: table {table.contract.table}: line {line.line}: {line.detail}"
        for line in found.unreadable[:_SHOWN]
    ]


def _referred(table: _Table, near: Sequence[_Table], contracts: Mapping[str, Contract]) -> list[_Table]:
    """The tables that a table's references lead to, among those near.

    Raises:
        ContractError: one is not there, so that the rule could not be kept.
    """
    found = {}
    for rule in table.contract.relations():
        if not isinstance(rule.relation, References) or rule.relation.table == table.contract.table:
            continue
        to = rule.relation
        at = next((it for it in near if it.contract.table == to.table and to.at in (None, it.shown)), None)
        if at is None:
            place = f" at {to.at}" if to.at else ""
            raise ContractError(
                f"{table.shown}: table {table.contract.table}: rule {rule.name} refers to table "
                f"{to.table}{place}, which its stage neither writes nor reads"
            )
        found[rule.relation.table] = at
    return list(found.values())


def _without_relations(contract: Contract) -> Contract:
    rules = tuple(rule for rule in contract.row_rules if rule.relation is None)
    return contract.model_copy(update={"row_rules": rules})


def _said(database: Database, table: _Table, broken: Broken) -> str:
    contract = table.contract
    rule = next(r for r in (*contract.expectations(), *contract.relations()) if r.name == broken.rule)
    first = ", ".join(str(int(row)) for row in broken.rows[:_SHOWN])
    keys = database.rows(
        f"SELECT {ROW}, CAST({name(contract.key)} AS VARCHAR) FROM {name(contract.table)} "  # noqa: S608
        f"WHERE {ROW} IN ({first}) ORDER BY 1"
    )
    shown = ", ".join(f"{row + 1} ({contract.key} {key})" for row, key in keys)
    more = f" and {len(broken.rows) - _SHOWN} more" if len(broken.rows) > _SHOWN else ""
    return f"{table.shown}: table {contract.table}: row {shown}{more} breaks the rule {rule.name}: {rule.why}"


def holds(number: float, allowed: Allowed) -> bool:
    """Whether a number is within its bounds, both included; what is no number is in none."""
    if np.isnan(number):
        return False
    return (allowed.min_value is None or number >= allowed.min_value) and (
        allowed.max_value is None or number <= allowed.max_value
    )


def _broken_table_rules(database: Database, table: _Table, rows: int, broken: Sequence[Broken]) -> list[str]:
    """The table rules that block, in words; a warning is printed."""
    contract, problems = table.contract, []
    if not contract.table_rules:
        return []
    measured = Measured(
        database=database,
        view=contract.table,
        contract=contract,
        profile=profile_table(database, contract.table, contract),
        read=rows,
        quarantined={item.rule: len(item.rows) for item in broken},
        reference=None,
        as_of=None,
        alone=_ALONE,
    )
    for rule in contract.table_rules:
        try:
            number = measure(rule, measured)
        except NotApplicable:
            continue
        if not holds(number, rule.allowed):
            said = (
                f"{table.shown}: table {contract.table} breaks the rule {rule.name}: observed {number:g}, "
                f"allowed {rule.allowed}. {rule.why}"
            )
            if rule.severity == "block":
                problems.append(said)
            else:
                print(f"warning: {said}")
    return problems
