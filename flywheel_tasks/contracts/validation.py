"""Runs contracts on a set of tables: what breaks a row rule goes to quarantine, what is left is judged as a table."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from flywheel_tasks.contracts import quarantine
from flywheel_tasks.contracts.model import Contract, ContractError
from flywheel_tasks.contracts.profile import FORMAT, profile_table
from flywheel_tasks.contracts.relations import Broken, Relations
from flywheel_tasks.contracts.rows import broken_by_expectations
from flywheel_tasks.contracts.schema import check_schema
from flywheel_tasks.contracts.sql import Cleared, Database
from flywheel_tasks.contracts.tables import FIRST, Measured, Numbers, judged, numbers_of

EXAMPLES = 5  # quarantined rows of each rule that are shown
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Source:
    """What is validated.

    Attributes:
        tables: Parquet file by table.
        contracts: contracts of these tables.
        folder: of the contracts, for messages.
        origins: file and line of every event; None if the tables' own files are the origin.
        reference: profile of the last accepted generation, or None.
        as_of: date of the newest log partition, or None.
        alone: why there is no reference, for the report.
        names: by table, what its file is called in messages; by default its path.
        cleared: by table, rows in which some columns count as missing, and are kept as missing.
    """

    tables: Mapping[str, Path]
    contracts: Mapping[str, Contract]
    folder: Path
    origins: Path | None = None
    reference: Mapping[str, Any] | None = None
    as_of: date | None = None
    alone: str = FIRST
    names: Mapping[str, str] | None = None
    cleared: Mapping[str, Cleared] = field(default_factory=dict)

    def name(self, table: str) -> str:
        """What the file of a table is called in messages."""
        return (self.names or {}).get(table, str(self.tables[table]))


@dataclass(frozen=True)
class Validated:
    """What came of it.

    Attributes:
        report: for people and pages: by table what was read, kept and set aside, and every rule's outcome.
        profile: of what was kept.
        examples: the first quarantined rows of each rule.
    """

    report: dict[str, Any]
    profile: dict[str, Any]
    examples: list[dict[str, Any]]

    def outcomes(self, *statuses: str) -> list[tuple[str, dict[str, Any]]]:
        """Table rules with one of these statuses, each with its table."""
        return [
            (table, rule)
            for table, of in self.report["tables"].items()
            for rule in of["table_rules"]
            if rule["status"] in statuses
        ]

    def quarantined(self) -> int:
        """Rows set aside."""
        return sum(of["read"] - of["kept"] for of in self.report["tables"].values())

    def problems(self) -> list[str]:
        """The table rules that block, in words."""
        return [
            f"table {table} breaks the rule {rule['rule']} ({rule['measure']}): observed {rule['observed']:g}, "
            f"allowed {rule['allowed']}. {rule['why']}"
            for table, rule in self.outcomes("block")
        ]


def validate(source: Source, out: Path, scratch: Path, memory_mb: int) -> Validated:
    """Validate tables; write what is kept and the quarantine.

    Args:
        source: the tables and their contracts.
        out: an existing folder: gets ``<table>.parquet`` and ``quarantine.parquet``.
        scratch: folder for what does not fit into memory.
        memory_mb: bound of the table engine (MB).

    Raises:
        ContractError: a table has not the contract's columns, or the books do not balance.
    """
    contracts = {table: source.contracts[table] for table in sorted(source.tables)}
    sizes = {}
    for table, contract in contracts.items():
        with pq.ParquetFile(source.tables[table]) as file:
            check_schema(contract, file.schema_arrow, Path(source.name(table)))
            sizes[table] = file.metadata.num_rows
    with Database(scratch, memory_mb) as database:
        for table in contracts:
            database.attach(table, source.tables[table], source.cleared.get(table))
        alive, found, skipped = _set_aside(database, contracts, sizes)
        files = {table: source.name(table) for table in source.tables}
        quarantine.collect(database, contracts, found, source.origins, files)
        written = quarantine.write_quarantine(database, out / f"{QUARANTINE}.parquet")
        examples = quarantine.examples(database, EXAMPLES)
        kept = {
            table: quarantine.write_kept(
                source.tables[table], alive[table], out / f"{table}.parquet", source.cleared.get(table)
            )
            for table in contracts
        }
        del alive
        counts = {table: Counter[str]() for table in contracts}
        for broken in found:
            counts[broken.table][broken.rule] += len(broken.rows)
        _balance(sizes, kept, counts, written)
        profile: dict[str, Any] = {"format": FORMAT, "tables": {}}
        numbers: dict[str, Numbers] = {}
        for table, contract in contracts.items():
            view = f"kept {table}"
            database.attach(view, out / f"{table}.parquet")
            profile["tables"][table] = profile_table(database, view, contract)
            numbers[table] = numbers_of(
                Measured(
                    database=database,
                    view=view,
                    contract=contract,
                    profile=profile["tables"][table],
                    read=sizes[table],
                    quarantined=counts[table],
                    reference=((source.reference or {}).get("tables") or {}).get(table),
                    as_of=source.as_of,
                    alone=source.alone,
                )
            )
    judgements = _judged(contracts, numbers, source.folder)
    tables = {
        table: {
            "description": contract.description,
            "read": sizes[table],
            "kept": kept[table],
            "row_rules": _row_rules(contract, counts[table], skipped),
            "table_rules": judgements[table],
        }
        for table, contract in contracts.items()
    }
    statuses = {rule["status"] for of in tables.values() for rule in of["table_rules"]}
    result = next((status for status in ("block", "warn") if status in statuses), "pass")
    return Validated({"result": result, "tables": tables}, profile, examples)


def _judged(
    contracts: Mapping[str, Contract], numbers: Mapping[str, Numbers], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Great Expectations on the contracts and on what was measured: by table, every table rule's outcome.

    It is loaded here, when the table engine is closed: with pandas it takes about as much memory as the engine does.

    Raises:
        ContractError: it does not take an expectation.
    """
    from flywheel_tasks.contracts.judge import Judge, check_expectations

    check_expectations(contracts, folder)
    judge = Judge()
    return {
        table: judged(contract, numbers[table], judge, folder / f"{table}.yaml")
        for table, contract in contracts.items()
    }


def _set_aside(
    database: Database, contracts: Mapping[str, Contract], sizes: Mapping[str, int]
) -> tuple[dict[str, np.ndarray], list[Broken], list[tuple[str, str, str]]]:
    """Which rows are left, what was set aside, and the relations to tables that are not here."""
    alive = {table: np.ones(size, bool) for table, size in sizes.items()}
    found = []
    for table, contract in contracts.items():
        for rule, rows in broken_by_expectations(database, contract):
            if len(rows):
                alive[table][rows] = False
                found.append(Broken(table, rule, rows))
    relations = Relations(database, contracts, alive)
    found += relations.settle()
    return alive, found, relations.skipped


def _row_rules(
    contract: Contract, counts: Mapping[str, int], skipped: list[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    absent = {rule: other for table, rule, other in skipped if table == contract.table}
    return [
        {
            "rule": rule.name,
            "kind": rule.expectation
            or next(k for k in ("references", "constant", "rooted", "greatest") if getattr(rule, k)),
            "set_aside": counts.get(rule.name, 0),
            "note": f"not applicable: table {absent[rule.name]} is not here" if rule.name in absent else "",
            "why": rule.why,
        }
        for rule in (*contract.expectations(), *contract.relations())
    ]


def _balance(
    sizes: Mapping[str, int], kept: Mapping[str, int], counts: Mapping[str, Counter[str]], written: int
) -> None:
    """Rows in are rows kept and rows set aside, table by table and as they were written.

    Raises:
        ContractError: they are not.
    """
    for table, size in sizes.items():
        if kept[table] + counts[table].total() != size:
            raise ContractError(
                f"table {table}: {size} rows, but {kept[table]} kept and {counts[table].total()} quarantined"
            )
    if (total := sum(of.total() for of in counts.values())) != written:
        raise ContractError(f"{total} rows are quarantined, but {written} were written")
