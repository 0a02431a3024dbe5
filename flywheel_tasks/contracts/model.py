"""What a data contract is: the typed form of ``data_contracts/<table>.yaml``."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flywheel_tasks.contracts.measures import Measure

Scalar = str | int | float | bool
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class ContractError(ValueError):
    """A contract cannot be read, or a table breaks a rule that stops the generation."""


class Part(BaseModel):
    """Base of a contract's parts: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Part):
    """A column of a table.

    Attributes:
        type: its Arrow type, in the words of :func:`flywheel_tasks.contracts.schema.arrow_type`.
        nullable: whether a value may be missing; if not, a row without one breaks the rule ``null_<column>``.
        description: what it means.
        unit: of a number or time; empty where there is none.
    """

    type: str
    nullable: bool
    description: str
    unit: str = ""


class References(Part):
    """A row rule: the value of ``column`` is a value of ``table.target`` (a missing value breaks nothing).

    Attributes:
        column: the referring column.
        table: the table referred to.
        target: its column; it must be unique there if the row referred to is looked at (by what follows).
        at: which of the table's paths, if a generation has several tables of that form.
        when: only rows with these values must refer; the others may do as they like.
        where: values that the row referred to must have.
        same: columns in which both rows must be equal.
        equal: columns that must be equal under two names, the referring row's and the other's.
        differs: columns in which they must differ.
        not_before: a column in which the referring row must not be smaller.
    """

    column: str
    table: str
    target: str
    at: str | None = None
    when: dict[str, Scalar] = {}
    where: dict[str, Scalar] = {}
    same: tuple[str, ...] = ()
    equal: dict[str, str] = {}
    differs: tuple[str, ...] = ()
    not_before: str | None = None

    @property
    def compares(self) -> bool:
        """Whether the row referred to is looked at, beyond its being there."""
        return bool(self.where or self.same or self.equal or self.differs or self.not_before)


class Constant(Part):
    """A row rule: all rows with the same ``within`` (column or columns) have one ``column``; if not, all break it."""

    column: str
    within: Annotated[
        tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
    ]


class Rooted(Part):
    """A row rule on a tree: every row leads, parent by parent, to a root that is as it should be.

    Attributes:
        parent: column with the parent's id; null in a root.
        target: column of the id; it must be unique.
        root_where: values that a root must have.
        only: ``roots`` looks at roots alone, ``others`` at the rows that must lead to one.
        within: of ``roots``: all rows with the same value as a root that breaks the rule break it, too.
        sole_is_free: with ``within``: the only root of its group may have any values.
    """

    parent: str
    target: str
    root_where: dict[str, Scalar]
    only: Literal["roots", "others"]
    within: str | None = None
    sole_is_free: bool = False

    @model_validator(mode="after")
    def _grouped(self) -> "Rooted":
        if self.within is not None and self.only != "roots":
            raise ValueError("rooted: within is for only: roots")
        if self.sole_is_free and self.within is None:
            raise ValueError("rooted: sole_is_free needs within")
        return self


class Greatest(Part):
    """A row rule: a row with ``where`` has the greatest ``column`` of all rows with its ``within``."""

    column: str
    within: str
    where: dict[str, Scalar]


class Rule(Part):
    """A row rule: a Great Expectations expectation, or one of the relations between rows.

    Attributes:
        name: what a broken row is listed under.
        why: what would go wrong without it.
        expectation: type of the expectation.
        kwargs: its arguments.
        references: see :class:`References`.
        constant: see :class:`Constant`.
        rooted: see :class:`Rooted`.
        greatest: see :class:`Greatest`.
    """

    name: Name
    why: str
    expectation: str | None = None
    kwargs: dict[str, Any] = {}
    references: References | None = None
    constant: Constant | None = None
    rooted: Rooted | None = None
    greatest: Greatest | None = None

    @property
    def relation(self) -> References | Constant | Rooted | Greatest | None:
        """The relation between rows, if it is one."""
        return self.references or self.constant or self.rooted or self.greatest

    @model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        kinds = (self.expectation, self.references, self.constant, self.rooted, self.greatest)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError(
                f"rule {self.name} needs exactly one of expectation, references, constant, rooted, greatest"
            )
        if self.kwargs and self.expectation is None:
            raise ValueError(f"rule {self.name} has kwargs, which only an expectation takes")
        return self


class Allowed(Part):
    """Bounds of a measured number, both included; the arguments of expect_column_values_to_be_between."""

    min_value: float | None = None
    max_value: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Allowed":
        if self.min_value is None and self.max_value is None:
            raise ValueError("allowed needs min_value or max_value")
        if self.min_value is not None and self.max_value is not None and self.min_value > self.max_value:
            raise ValueError("allowed: min_value is above max_value")
        return self

    def __str__(self) -> str:
        """In words."""
        if self.min_value is None:
            return f"at most {self.max_value:g}"
        if self.max_value is None:
            return f"at least {self.min_value:g}"
        return f"{self.min_value:g} to {self.max_value:g}"


class TableRule(Part):
    """A rule on what is left of a table after its row rules: a number, and the bounds it must keep.

    Attributes:
        name: what the report calls it.
        why: what would go wrong without it.
        severity: ``block`` stops the generation, ``warn`` is reported.
        measure: the number.
        allowed: its bounds.
        min_rows: with fewer rows, now or in the generation compared with, the rule does not judge. A share that was set
            aside needs them among the rows read, a change of volume in the generation compared with only.
    """

    name: Name
    why: str
    severity: Literal["warn", "block"]
    measure: Measure
    allowed: Allowed
    min_rows: Annotated[int, Field(ge=0)] = 0


class Contract(Part):
    """The contract of one table.

    Attributes:
        table: its name.
        description: what a row is.
        paths: where a generation keeps tables of this form.
        key: column that names a row in the quarantine.
        time: column of the event's time, if rows are events.
        columns: its columns, in order.
        row_rules: a row that breaks one goes to quarantine, under the first it breaks.
        table_rules: what remains must keep these.
    """

    table: Name
    description: str
    paths: tuple[str, ...]
    key: str
    time: str | None = None
    columns: dict[str, Column]
    row_rules: tuple[Rule, ...] = ()
    table_rules: tuple[TableRule, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> "Contract":
        names = [rule.name for rule in self.row_rules] + [rule.name for rule in self.table_rules]
        names += [f"null_{column}" for column in self.columns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rule names appear more than once: {', '.join(repeated)}")
        if absent := [name for name in (self.key, self.time) if name and name not in self.columns]:
            raise ValueError(f"key or time is no column: {', '.join(absent)}")
        places: dict[str, set[str | None]] = {}
        for rule in self.row_rules:
            if rule.references is not None:
                places.setdefault(rule.references.table, set()).add(rule.references.at)
        if several := sorted(table for table, at in places.items() if len(at) > 1):
            raise ValueError(f"references to one table must have the same at: {', '.join(several)}")
        return self

    def expectations(self) -> list[Rule]:
        """The row rules that are expectations; first that no column which may not be null is."""
        required = [
            Rule(
                name=f"null_{name}",
                why="The column may not be null.",
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

    def unique_columns(self) -> set[str]:
        """Columns that a row rule keeps unique."""
        return {
            str(rule.kwargs.get("column"))
            for rule in self.row_rules
            if rule.expectation == "expect_column_values_to_be_unique" and "row_condition" not in rule.kwargs
        }
