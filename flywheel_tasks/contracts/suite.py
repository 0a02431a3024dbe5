"""Data contracts: reads ``data_contracts/*.yaml`` and builds Great Expectations suites from them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from great_expectations import ExpectationSuite
from great_expectations.exceptions import ExpectationNotFoundError
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_SCALAR = str | int | float | bool


class ContractError(ValueError):
    """A contract cannot be read, or a table breaks a rule that stops the generation."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Part):
    """A column of a table.

    Attributes:
        type: its Arrow type, as pyarrow writes it (a list as ``list<string>``).
        nullable: whether a value may be missing; if not, a row without one breaks the rule ``null_<column>``.
        description: what it means.
    """

    type: str
    nullable: bool
    description: str


class References(_Part):
    """A row rule: the value of ``column`` is a value of ``table.target`` (a missing value breaks nothing).

    Attributes:
        column: the referring column.
        table: the table referred to.
        target: its column.
        where: values that the row referred to must have.
        same: columns in which both rows must be equal.
        differs: columns in which they must differ.
        not_before: a column in which the referring row must not be smaller.
    """

    column: str
    table: str
    target: str
    where: dict[str, _SCALAR] = {}
    same: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    not_before: str | None = None


class Constant(_Part):
    """A row rule: all rows with the same ``within`` have one ``column``; if not, all of them break it."""

    column: str
    within: str


class Rooted(_Part):
    """A row rule on a tree: every row leads, parent by parent, to a root that is as it should be.

    Attributes:
        parent: column with the parent's id; null in a root.
        target: column of the id.
        root_where: values that a root must have.
        only: ``roots`` looks at roots alone, ``others`` at the rows that must lead to one.
    """

    parent: str
    target: str
    root_where: dict[str, _SCALAR]
    only: Literal["roots", "others"]


class Rule(_Part):
    """A rule: a Great Expectations expectation, or one of the relations between rows.

    Attributes:
        name: what a broken row is listed under.
        expectation: type of the expectation.
        kwargs: its arguments.
        references: see :class:`References`.
        constant: see :class:`Constant`.
        rooted: see :class:`Rooted`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    expectation: str | None = None
    kwargs: dict[str, Any] = {}
    references: References | None = None
    constant: Constant | None = None
    rooted: Rooted | None = None

    @property
    def relation(self) -> References | Constant | Rooted | None:
        """The relation between rows, if it is one."""
        return self.references or self.constant or self.rooted

    @model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        kinds = (self.expectation, self.references, self.constant, self.rooted)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError(
                f"rule {self.name} needs exactly one of expectation, references, constant, rooted"
            )
        if self.kwargs and self.expectation is None:
            raise ValueError(f"rule {self.name} has kwargs, which only an expectation takes")
        return self


class Contract(_Part):
    """The contract of one table.

    Attributes:
        table: its name.
        description: what a row is.
        columns: its columns, in order.
        row_rules: a row that breaks one goes to quarantine, under the first it breaks.
        table_rules: what remains must keep these, or the generation stops.
    """

    table: str
    description: str
    columns: dict[str, Column]
    row_rules: tuple[Rule, ...]
    table_rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _sound(self) -> "Contract":
        names = [rule.name for rule in (*self.row_rules, *self.table_rules)]
        names += [f"null_{column}" for column in self.columns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rule names appear more than once: {', '.join(repeated)}")
        for rule in self.table_rules:
            if rule.relation is not None:
                raise ValueError(f"table rule {rule.name} must be an expectation")
        return self

    def expectations(self) -> list[Rule]:
        """The row rules that are expectations; first that no column which may not be null is."""
        required = [
            Rule(
                name=f"null_{name}",
                expectation="expect_column_values_to_not_be_null",
                kwargs={"column": name},
            )
            for name, column in self.columns.items()
            if not column.nullable
        ]
        return required + [rule for rule in self.row_rules if rule.expectation is not None]

    def relations(self) -> list[Rule]:
        """The row rules that are relations between rows."""
        return [rule for rule in self.row_rules if rule.relation is not None]


def _columns(rule: Rule) -> list[tuple[str | None, str]]:
    """``(table or None for its own, column)`` that a rule names."""
    named: list[tuple[str | None, str]] = []
    for key, value in rule.kwargs.items():
        if key.startswith("column") and isinstance(value, str):
            named.append((None, value))
        elif key in ("column_list", "column_set"):
            named += [(None, item) for item in value]
    if (reference := rule.references) is not None:
        both = [*reference.same, *reference.differs, *filter(None, [reference.not_before])]
        named += [(None, name) for name in (reference.column, *both)]
        named += [(reference.table, name) for name in (reference.target, *reference.where, *both)]
    if rule.constant is not None:
        named += [(None, rule.constant.column), (None, rule.constant.within)]
    if rule.rooted is not None:
        named += [(None, name) for name in (rule.rooted.parent, rule.rooted.target, *rule.rooted.root_where)]
    return named


def _check_columns(contracts: dict[str, Contract], folder: Path) -> None:
    for name, contract in contracts.items():
        for rule in (*contract.row_rules, *contract.table_rules):
            for table, column in _columns(rule):
                of = contracts.get(table or name)
                if of is None or column not in of.columns:
                    where = f"{folder / (name + '.yaml')}: rule {rule.name}"
                    raise ContractError(f"{where}: there is no column {column} in table {table or name}")


def load_contracts(folder: Path) -> dict[str, Contract]:
    """Read all contracts of a folder.

    Args:
        folder: holds one ``<table>.yaml`` a table.

    Returns:
        contracts by table, sorted by name.

    Raises:
        ContractError: a file is not a contract, or a rule names what is not there; the message says where.
    """
    contracts: dict[str, Contract] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            contract = Contract.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise ContractError(f"{path}: not YAML: {error}") from error
        except ValidationError as error:
            lines = [
                f"{path}: {'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors()
            ]
            raise ContractError("\n".join(lines)) from error
        if contract.table != path.stem:
            raise ContractError(f"{path}: is the contract of table {contract.table}; name the file after it")
        for kind, rules in (("row", contract.expectations()), ("table", contract.table_rules)):
            build_suite(f"{contract.table} {kind}", list(rules), path)
        contracts[contract.table] = contract
    _check_columns(contracts, folder)
    return contracts


def build_suite(name: str, rules: list[Rule], path: Path) -> ExpectationSuite:
    """Build the suite of a contract's expectations; each keeps its rule's name in its ``meta``.

    Args:
        name: of the suite.
        rules: expectations only.
        path: the contract's file, for messages.

    Raises:
        ContractError: Great Expectations does not know an expectation or does not take its arguments.
    """
    expectations = []
    for rule in rules:
        try:
            configuration = ExpectationConfiguration(
                type=str(rule.expectation), kwargs=rule.kwargs, meta={"rule": rule.name}
            )
            expectations.append(configuration.to_domain_obj())
        except (ExpectationNotFoundError, ValueError, TypeError) as error:
            raise ContractError(f"{path}: rule {rule.name}: {rule.expectation}: {error}") from error
    return ExpectationSuite(name=name, expectations=expectations)
