"""Reads ``data_contracts/*.yaml``; a contract that cannot be kept is refused here, not in the middle of a run."""

from collections.abc import Iterator
from pathlib import Path

from flywheel_tasks.contracts.expectations import compile_rule
from flywheel_tasks.contracts.measures import QuarantinedShare
from flywheel_tasks.contracts.model import Contract, ContractError, Rule, TableRule
from flywheel_tasks.contracts.schema import arrow_type
from flywheel_tasks.storage.documents import read_yaml


def load_contracts(folder: Path) -> dict[str, Contract]:
    """Read all contracts of a folder.

    Args:
        folder: holds one ``<table>.yaml`` a table.

    Returns:
        contracts by table, sorted by name.

    Raises:
        ContractError: a file is not a contract, or a rule names what is not there or cannot be computed; the
            message says where.
    """
    contracts: dict[str, Contract] = {}
    for path in sorted(folder.glob("*.yaml")):
        contract = read_yaml(path, Contract, ContractError)
        if contract.table != path.stem:
            raise ContractError(f"{path}: is the contract of table {contract.table}; name the file after it")
        contracts[contract.table] = contract
    if not contracts:
        raise ContractError(f"{folder}: no data contracts (*.yaml) here")
    for name, contract in contracts.items():
        _check(contract, contracts, folder / f"{name}.yaml")
    return contracts


def _check(contract: Contract, contracts: dict[str, Contract], path: Path) -> None:
    for name, column in contract.columns.items():
        try:
            arrow_type(column.type)
        except ValueError as error:
            raise ContractError(f"{path}: columns.{name}: {error}") from error
    rules: tuple[Rule | TableRule, ...] = (*contract.row_rules, *contract.table_rules)
    for rule in rules:
        for table, named in _columns(rule):
            of = contracts.get(table or contract.table)
            if of is None or named not in of.columns:
                where = f"{path}: rule {rule.name}"
                raise ContractError(f"{where}: there is no column {named} in table {table or contract.table}")
    for row_rule in contract.row_rules:
        if row_rule.expectation is not None:
            try:
                compile_rule(row_rule, contract)
            except ValueError as error:
                raise ContractError(f"{path}: rule {row_rule.name} cannot be computed: {error}") from error
        _check_unique(row_rule, contract, contracts, path)
        if (to := row_rule.references) is not None and to.at not in (None, *contracts[to.table].paths):
            raise ContractError(f"{path}: rule {row_rule.name}: table {to.table} is not at {to.at}")
    known = {rule.name for rule in (*contract.expectations(), *contract.relations())}
    for table_rule in contract.table_rules:
        if isinstance(table_rule.measure, QuarantinedShare) and (
            unknown := set(table_rule.measure.rules) - known
        ):
            raise ContractError(f"{path}: rule {table_rule.name}: no row rule {', '.join(sorted(unknown))}")
        if table_rule.measure.kind in ("newest_day", "missing_days", "age_days", "volume_change") and (
            contract.time is None
        ):
            raise ContractError(f"{path}: rule {table_rule.name} needs the contract's time")


def _check_unique(rule: Rule, contract: Contract, contracts: dict[str, Contract], path: Path) -> None:
    """A row that is looked at through its id must be the only one with it."""
    looked_up = None
    if rule.references is not None and rule.references.compares:
        looked_up = (rule.references.table, rule.references.target)
    if rule.rooted is not None:
        looked_up = (contract.table, rule.rooted.target)
    if looked_up is not None and looked_up[1] not in contracts[looked_up[0]].unique_columns():
        raise ContractError(
            f"{path}: rule {rule.name} looks at the row with a {looked_up[0]}.{looked_up[1]}, so table "
            f"{looked_up[0]} needs a row rule expect_column_values_to_be_unique on it"
        )


def _columns(rule: Rule | TableRule) -> Iterator[tuple[str | None, str]]:
    """``(table or None for its own, column)`` that a rule names."""
    if isinstance(rule, TableRule):
        if (column := getattr(rule.measure, "column", None)) is not None:
            yield None, column
        yield from ((None, name) for name in getattr(rule.measure, "columns", ()))
        yield from ((None, name) for name in getattr(rule.measure, "where", {}))
        return
    for key, value in rule.kwargs.items():
        if key.startswith("column") and isinstance(value, str):
            yield None, value
        elif key in ("column_list", "column_set"):
            yield from ((None, item) for item in value)
    if (reference := rule.references) is not None:
        both = [*reference.same, *reference.differs, *filter(None, [reference.not_before])]
        yield from ((None, name) for name in (reference.column, *reference.when, *reference.equal, *both))
        others = (reference.target, *reference.where, *reference.equal.values(), *both)
        yield from ((reference.table, name) for name in others)
    if rule.constant is not None:
        yield from ((None, name) for name in (rule.constant.column, *rule.constant.within))
    if rule.rooted is not None:
        rooted = rule.rooted
        names = (rooted.parent, rooted.target, *rooted.root_where, *filter(None, [rooted.within]))
        yield from ((None, name) for name in names)
    if rule.greatest is not None:
        names = (rule.greatest.column, rule.greatest.within, *rule.greatest.where)
        yield from ((None, name) for name in names)
