"""Stage ``validate``: data contracts on the ingested tables.

A row that breaks a row rule goes to quarantine under the first rule it breaks. Relations between rows are
tried again until nothing more goes, because a removed row can leave others without their card, parent or
reply. What remains must keep the table rules, and the quarantine must stay below its limit, or the
generation stops.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.contracts.engine import Engine
from flywheel_tasks.contracts.relations import broken_rows
from flywheel_tasks.contracts.suite import Contract, ContractError, Rule, load_contracts
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import read_table, write_rows, write_table
from flywheel_tasks.traffic.schemas import TABLES, VALIDATION_QUARANTINE

_SHOWN = 5  # examples of quarantined rows in an error
_DETAIL = 300  # characters of a detail


@dataclass
class Validation:
    """The state of a validation.

    Attributes:
        contracts: by table.
        folder: of the contracts, for messages.
        frames: the rows that are left, by table; the index is the row number in the ingested table.
        quarantine: rows set aside, ``{table: {row number: (rule, detail)}}``.
        report: outcomes of the expectations.
    """

    contracts: dict[str, Contract]
    folder: Path
    frames: dict[str, pd.DataFrame]
    quarantine: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def _remove(self, table: str, broken: Mapping[int, tuple[str, str]]) -> None:
        self.quarantine.setdefault(table, {}).update(broken)
        self.frames[table] = self.frames[table].drop(index=list(broken))

    def check_rows(self, engine: Engine) -> None:
        """Set aside the rows that break an expectation."""
        for table, contract in self.contracts.items():
            path = self.folder / f"{table}.yaml"
            outcomes = engine.check(table, self.frames[table], contract.expectations(), path)
            self.report[table] = {"row_rules": [outcome.summary() for outcome in outcomes]}
            broken: dict[int, tuple[str, str]] = {}
            for outcome in outcomes:
                column = outcome.rule.kwargs.get("column")
                for row, value in outcome.broken.items():
                    shown = (
                        value
                        if column is None or isinstance(value, str)
                        else self.frames[table].at[row, column]
                    )
                    detail = f"{column or 'row'} is {shown!r}, {outcome.rule.expectation}"
                    broken.setdefault(row, (outcome.rule.name, detail[:_DETAIL]))
            self._remove(table, broken)

    def check_relations(self) -> None:
        """Set aside the rows that break a relation, until no row does.

        After each removal the rules are tried from the first one again, so that a row which lost what it
        refers to is listed under the rule that says so.
        """
        while any(
            self._check_relation(table, rule)
            for table, contract in self.contracts.items()
            for rule in contract.relations()
        ):
            continue

    def _check_relation(self, table: str, rule: Rule) -> bool:
        """Set aside the rows that break one relation; whether there were any."""
        broken = broken_rows(rule, table, self.frames)
        self._remove(table, {row: (rule.name, why[:_DETAIL]) for row, why in broken.items()})
        return bool(broken)

    def check_tables(self, engine: Engine) -> None:
        """Check what is left against the table rules.

        Raises:
            ContractError: a rule is broken; the message names table, rule and observed value of each.
        """
        problems = []
        for table, contract in self.contracts.items():
            path = self.folder / f"{table}.yaml"
            outcomes = engine.check(table, self.frames[table], list(contract.table_rules), path)
            self.report[table]["table_rules"] = [outcome.summary() for outcome in outcomes]
            problems += [
                f"table {table} breaks the rule {outcome.rule.name} ({outcome.rule.expectation} "
                f"{outcome.rule.kwargs}): observed {outcome.observed}"
                for outcome in outcomes
                if not outcome.success
            ]
        if problems:
            raise ContractError("\n".join([f"{self.folder}: contracts broken:", *problems]))

    def rows(self, origins: pa.Table, events: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
        """The quarantine as rows, sorted by table, file and line.

        Args:
            origins: file and line of every event.
            events: the ingested tables.
        """
        ids = {
            table: {row: events[table]["event_id"][row].as_py() for row in broken}
            for table, broken in self.quarantine.items()
        }
        wanted = pa.array([item for rows in ids.values() for item in rows.values()], pa.string())
        places = {
            row["event_id"]: (row["file"], row["line"])
            for row in origins.filter(pc.is_in(origins["event_id"], value_set=wanted)).to_pylist()
        }
        found = []
        for table, broken in self.quarantine.items():
            for row, (rule, detail) in broken.items():
                event_id = ids[table][row]
                file, line = places.get(event_id, (None, None))
                found.append(
                    {
                        "table": table,
                        "event_id": event_id,
                        "file": file,
                        "line": line,
                        "rule": rule,
                        "detail": detail,
                    }
                )
        return sorted(found, key=lambda r: (r["table"], r["file"] or "", r["line"] or 0, r["event_id"] or ""))


def _type_name(kind: pa.DataType) -> str:
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def _check_schema(contract: Contract, table: pa.Table, path: Path) -> None:
    """Raise unless the table has exactly the contract's columns, with their types."""
    expected = {(name, column.type) for name, column in contract.columns.items()}
    found = {(item.name, _type_name(item.type)) for item in table.schema}
    if expected != found:
        wrong = [f"{name}: {kind}" for name, kind in sorted(found - expected)]
        absent = [f"{name}: {kind}" for name, kind in sorted(expected - found)]
        raise ContractError(
            f"{path}: table {contract.table} breaks the rule columns: absent: {', '.join(absent) or 'none'}; "
            f"unexpected: {', '.join(wrong) or 'none'}"
        )


def _check_share(rows: list[dict[str, Any]], ingested: int, broken_lines: int, limit: float) -> float:
    """Share of all lines that ingestion and validation set aside.

    Raises:
        ContractError: it is above the limit; the message names rules and examples.
    """
    share = (broken_lines + len(rows)) / (broken_lines + ingested)
    if share > limit:
        rules = Counter(f"{row['table']}.{row['rule']}" for row in rows)
        counts = "".join(f"\n  {rule}: {count}" for rule, count in sorted(rules.items()))
        examples = "".join(
            f"\n  {row['file']}:{row['line']}: {row['rule']}: {row['detail']}" for row in rows[:_SHOWN]
        )
        raise ContractError(
            f"{share:.1%} of the log is quarantined, above validate.max_quarantine_share ({limit:.1%}): "
            f"{broken_lines} lines by ingest (data/ingested/quarantine.parquet), "
            f"{len(rows)} rows by contracts:{counts}\nfor example:{examples or ' none'}"
        )
    return share


def _counts(validation: Validation, events: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Rows read, passed and quarantined by table, which must add up."""
    metrics = {}
    for table, ingested in events.items():
        rules = Counter(rule for rule, _ in validation.quarantine.get(table, {}).values())
        passed = len(validation.frames[table])
        if passed + rules.total() != ingested.num_rows:
            raise ContractError(
                f"table {table}: {ingested.num_rows} rows, but {passed} passed "
                f"and {rules.total()} quarantined"
            )
        metrics[table] = {
            "read": ingested.num_rows,
            "passed": passed,
            "quarantined": {"total": rules.total(), **dict(sorted(rules.items()))},
        }
    return metrics


def run(io: StageIO) -> Mapping[str, Any]:
    """Entry of the stage: ``data/ingested`` and ``data_contracts`` to ``data/validated``.

    Raises:
        ContractError: a contract is missing or wrong, a table breaks one, or too much is quarantined.
    """
    folder = io.dep("data_contracts")
    contracts = load_contracts(folder)
    if missing := sorted(set(TABLES) - set(contracts)):
        raise ContractError(f"{folder}: no contract for {', '.join(missing)}")
    contracts = {table: contracts[table] for table in sorted(TABLES)}
    events = {table: read_table(io.dep(f"data/ingested/{table}.parquet")) for table in contracts}
    for table, contract in contracts.items():
        _check_schema(contract, events[table], folder / f"{table}.yaml")
    validation = Validation(contracts, folder, {table: rows.to_pandas() for table, rows in events.items()})
    engine = Engine()
    validation.check_rows(engine)
    validation.check_relations()
    rows = validation.rows(read_table(io.dep("data/ingested/origins.parquet")), events)
    broken_lines = read_table(io.dep("data/ingested/quarantine.parquet")).num_rows
    ingested = sum(table.num_rows for table in events.values())
    share = _check_share(rows, ingested, broken_lines, io.settings.validate_.max_quarantine_share)
    validation.check_tables(engine)
    metrics = _counts(validation, events)

    out = io.out("data/validated")
    out.mkdir(parents=True)
    for table, ingested_rows in events.items():
        kept = pa.array(validation.frames[table].index, pa.int64())
        write_table(ingested_rows.take(kept), out / f"{table}.parquet")
    write_rows(rows, VALIDATION_QUARANTINE, out / "quarantine.parquet")
    write_json(validation.report, out / "report.json")
    return {**metrics, "quarantine_share": share}
