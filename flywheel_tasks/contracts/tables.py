"""Table rules: what is measured on the rows that are left, and whether it is within its bounds.

A rule that judges a loss must judge most of all when little is left, so what it needs is counted before the loss: a
share that was set aside needs rows read, a change of volume needs rows in the generation compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

from flywheel_tasks.contracts import measures
from flywheel_tasks.contracts.distances import distance
from flywheel_tasks.contracts.model import Contract, TableRule
from flywheel_tasks.contracts.profile import rows_a_day
from flywheel_tasks.contracts.sql import Database, matching, name

FIRST = "not applicable: first generation"


class NotApplicable(Exception):
    """A rule has nothing to judge; the text says why."""


@dataclass(frozen=True)
class Measured:
    """A table and what it is compared with.

    Attributes:
        database: with the table as a view.
        view: its name.
        contract: of the table.
        profile: of the table.
        read: rows before anything was set aside.
        quarantined: rows set aside, by rule.
        reference: the table's profile in the last accepted generation; None if there is none.
        as_of: date of the newest log partition; None if there are no partitions.
        alone: why there is no reference.
    """

    database: Database
    view: str
    contract: Contract
    profile: Mapping[str, Any]
    read: int
    quarantined: Mapping[str, int]
    reference: Mapping[str, Any] | None
    as_of: date | None
    alone: str = FIRST


def measure(rule: TableRule, of: Measured) -> float:
    """The number that a rule judges.

    Raises:
        NotApplicable: there is nothing to judge.
    """
    rows = int(of.profile["rows"])
    if isinstance(rule.measure, measures.Rows):
        return _rows(rule.measure, of) if rule.measure.where else rows
    if rule.measure.compares and of.reference is None:
        raise NotApplicable(of.alone)
    counted = {"quarantined_share": of.read, "volume_change": rule.min_rows}.get(rule.measure.kind, rows)
    if counted < rule.min_rows:
        raise NotApplicable(f"not judged: {counted:,} rows, the rule needs {rule.min_rows:,}")
    return _MEASURES[rule.measure.kind](rule, of)


def _rows(measure: measures.Rows, of: Measured) -> float:
    query = f"SELECT count(*) FROM {name(of.view)} WHERE {matching(measure.where)}"  # noqa: S608
    return float(of.database.one(query)[0])


def _lacking(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.Lacking)
    columns = [name(column) for column in rule.measure.columns]
    values = " * ".join(f"(SELECT count(DISTINCT {column}) FROM {name(of.view)})" for column in columns)  # noqa: S608
    groups = f"SELECT count(*) AS n FROM {name(of.view)} GROUP BY {', '.join(columns)}"  # noqa: S608
    query = f"SELECT {values} * coalesce(max(n), 0) - coalesce(sum(n), 0) FROM ({groups})"  # noqa: S608
    return float(of.database.one(query)[0])


def _distinct(rule: TableRule, of: Measured) -> float:
    column = name(rule.measure.column)  # type: ignore[union-attr]
    return float(of.database.one(f"SELECT count(DISTINCT {column}) FROM {name(of.view)}")[0])  # noqa: S608


def _repeated(rule: TableRule, of: Measured) -> float:
    column, view = name(rule.measure.column), name(of.view)  # type: ignore[union-attr]
    rows = f"{view} WHERE {column} IS NOT NULL"
    # by hash first, which takes a fraction of the memory; the few that have one in common are compared
    of.database.run(
        f"CREATE OR REPLACE TEMP TABLE shared AS SELECT hash({column}) AS hash FROM {rows} "  # noqa: S608
        "GROUP BY 1 HAVING count(*) > 1"
    )
    if of.database.one("SELECT count(*) FROM shared") == (0,):
        return 0.0
    query = (
        f"SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM {rows} "  # noqa: S608
        f"AND hash({column}) IN (SELECT hash FROM shared) GROUP BY {column} HAVING count(*) > 1)"
    )
    return float(of.database.one(query)[0])


def _null_share(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.NullShare)
    where = matching(rule.measure.where)
    query = f"SELECT count(*), count({name(rule.measure.column)}) FROM {name(of.view)} WHERE {where}"  # noqa: S608
    rows, present = of.database.one(query)
    if not rows:
        raise NotApplicable("not judged: no such rows")
    return 1 - float(present) / float(rows)


def _quarantined(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.QuarantinedShare)
    if not of.read:
        raise NotApplicable("not judged: no rows")
    return sum(of.quarantined.get(name_, 0) for name_ in rule.measure.rules) / of.read


def _newest_day(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.NewestDay)
    *before, newest = [count for _, count in sorted(of.profile["days"].items())] or [0]
    if len(before) < rule.measure.min_days:
        raise NotApplicable(f"not judged: {len(before)} days before, the rule needs {rule.measure.min_days}")
    return newest / median(before)


def _missing_days(rule: TableRule, of: Measured) -> float:
    days = sorted(map(date.fromisoformat, of.profile["days"]))
    if not days:
        raise NotApplicable("not judged: no rows")
    return (days[-1] - days[0]).days + 1 - len(days)


def _age(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.AgeDays)
    days = of.profile["days"]
    if of.as_of is None or not days:
        raise NotApplicable("not judged: no log partitions" if days else "not judged: no rows")
    least = rule.measure.min_share * median(days.values())
    newest = max(day for day, count in days.items() if count >= least)
    return (of.as_of - date.fromisoformat(newest)).days


def _volume(rule: TableRule, of: Measured) -> float:
    assert of.reference is not None
    now, before = rows_a_day(of.profile), rows_a_day(of.reference)
    _enough(rule, of.reference["rows"])
    if not before:
        raise NotApplicable("not judged: the last accepted generation had no rows")
    return (now or 0.0) / before


def _null_change(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.NullChange)
    assert of.reference is not None
    _enough(rule, of.reference["rows"])
    column = rule.measure.column
    if column not in of.reference["null_share"]:
        raise NotApplicable("not judged: the last accepted generation's profile does not have it")
    return abs(of.profile["null_share"][column] - of.reference["null_share"][column])


def _drift(rule: TableRule, of: Measured) -> float:
    assert isinstance(rule.measure, measures.Drift)
    assert of.reference is not None
    now = of.profile["distributions"][rule.measure.key]
    before = of.reference["distributions"].get(rule.measure.key)
    if before is None:
        raise NotApplicable("not judged: the last accepted generation's profile does not have it")
    _enough(rule, min(now["rows"], before["rows"]), f"{now['rows']:,} now, {before['rows']:,} then")
    return distance(rule.measure.distance, now, before)


def _enough(rule: TableRule, rows: int, shown: str = "") -> None:
    least = max(rule.min_rows, 1)
    if rows < least:
        raise NotApplicable(f"not judged: {shown or f'{rows:,} rows then'}, the rule needs {least:,}")


_MEASURES = {
    "distinct": _distinct,
    "repeated": _repeated,
    "lacking": _lacking,
    "null_share": _null_share,
    "quarantined_share": _quarantined,
    "newest_day": _newest_day,
    "missing_days": _missing_days,
    "age_days": _age,
    "volume_change": _volume,
    "null_change": _null_change,
    "drift": _drift,
}


@dataclass(frozen=True)
class Numbers:
    """What the table rules of a table judge.

    Attributes:
        numbers: by rule, the number and its bounds (``min_value``, ``max_value``).
        notes: by rule that has nothing to judge, why.
    """

    numbers: Mapping[str, tuple[float, dict[str, float]]]
    notes: Mapping[str, str]


def numbers_of(of: Measured) -> Numbers:
    """Measure what the table rules of a table judge."""
    notes: dict[str, str] = {}
    numbers: dict[str, tuple[float, dict[str, float]]] = {}
    for rule in of.contract.table_rules:
        try:
            numbers[rule.name] = (measure(rule, of), rule.allowed.model_dump(exclude_none=True))
        except NotApplicable as reason:
            notes[rule.name] = str(reason)
    return Numbers(numbers, notes)


def judged(contract: Contract, of: Numbers, judge: Any, path: Any) -> list[dict[str, Any]]:
    """Every table rule of a table: observed, allowed, and what follows.

    Args:
        contract: of the table.
        of: what was measured.
        judge: a :class:`flywheel_tasks.contracts.judge.Judge`.
        path: the contract's file, for messages.

    Returns:
        one row a rule, in their order: ``rule``, ``severity``, ``status`` (pass, warn, block or
        not_applicable), ``measure``, ``observed``, ``allowed``, ``note``, ``why``.
    """
    numbers, notes = of.numbers, of.notes
    holds = judge.within(contract.table, numbers, path)
    return [
        {
            "rule": rule.name,
            "severity": rule.severity,
            "status": "not_applicable"
            if rule.name in notes
            else "pass"
            if holds[rule.name]
            else rule.severity,
            "measure": measures.describe(rule.measure),
            "observed": numbers[rule.name][0] if rule.name in numbers else None,
            "allowed": str(rule.allowed),
            "note": notes.get(rule.name, ""),
            "why": rule.why,
        }
        for rule in contract.table_rules
    ]
