"""Row rules between rows: which rows break one, until what is left breaks none.

The table engine joins once, on the rows that the expectations left, and gives for every row the number of the row
it refers to, or of the group of rows that share the value it refers to. From there on everything is arithmetic on
row numbers: a removed row can leave others without their card, parent or reply, and only those are looked at again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_tasks.contracts.model import Constant, Contract, Greatest, References, Rooted, Rule
from flywheel_tasks.contracts.rows import row_table
from flywheel_tasks.contracts.sql import ROW, Database, matching, name

_PART = 1 << 19  # rows looked at together
NULL, UNMATCHED = -1, -2  # instead of a row number: refers to nothing on purpose, refers to what is not there


@dataclass(frozen=True)
class Broken:
    """Rows that one rule set aside.

    Attributes:
        table: of the rows.
        rule: the rule's name.
        rows: their numbers, sorted.
        others: the rows they refer to, where these were there; else negative. None for other rules.
    """

    table: str
    rule: str
    rows: np.ndarray
    others: np.ndarray | None = None


@dataclass(frozen=True)
class _Link:
    """Where the rows of a table lead through a column.

    Attributes:
        to: by row, the number of the row or group referred to, or :data:`NULL` or :data:`UNMATCHED`.
        group: by row of the other table, its group; None where each row is its own.
        groups: how many there are.
        flaws: by row, a bit for each rule that the pair of rows breaks.
        bits: the bit of each rule.
    """

    to: np.ndarray
    group: np.ndarray | None
    groups: int
    flaws: np.ndarray
    bits: Mapping[str, int]

    def alive(self, other: np.ndarray) -> np.ndarray:
        """Which rows or groups still have a row."""
        if self.group is None:
            return other
        found = np.zeros(self.groups, bool)
        found[self.group[other & (self.group >= 0)]] = True
        return found


def flaw(rule: References, this: str = "a", other: str = "b") -> str:
    """SQL: what is wrong with the row referred to, in words; null if nothing is."""
    cases = [f"WHEN NOT coalesce({matching(rule.where, other)}, false) THEN 'where'"] if rule.where else []
    checks = [(column, "IS DISTINCT FROM", "differs from") for column in rule.same]
    checks += [(column, "IS NOT DISTINCT FROM", "is the same as") for column in rule.differs]
    if rule.not_before is not None:
        checks.append((rule.not_before, "<", "is before"))
    for column, operator, how in checks:
        mine, its = f"{this}.{name(column)}", f"{other}.{name(column)}"
        shown, other_shown = (f"CAST({it} AS VARCHAR)" for it in (mine, its))
        of = f"' {how} that of {rule.column} ', {this}.{name(rule.column)}"
        words = f"concat('{column} ', {shown}, {of}, ': ', {other_shown})"
        cases.append(f"WHEN {mine} {operator} {its} THEN {words}")
    for column, its_column in rule.equal.items():  # texts, maybe: they are not shown
        words = f"concat('{column} differs from {its_column} of {rule.column} ', {this}.{name(rule.column)})"
        cases.append(f"WHEN {this}.{name(column)} IS DISTINCT FROM {other}.{name(its_column)} THEN {words}")
    return f"CASE {' '.join(cases)} END" if cases else "NULL"


class Relations:
    """Applies the relations of all contracts.

    Args:
        database: with every table as a view of its name.
        contracts: of the tables.
        alive: by table, which rows are left; changed in place.
    """

    def __init__(
        self, database: Database, contracts: Mapping[str, Contract], alive: dict[str, np.ndarray]
    ) -> None:
        self._database = database
        self._contracts = contracts
        self._alive = alive
        self._links: dict[tuple[str, str, str, str], _Link] = {}
        self.skipped: list[tuple[str, str, str]] = []  # table, rule, and the table that is not here

    def settle(self) -> list[Broken]:
        """Set aside rows until no rule is broken.

        After each removal the rules are tried from the first one again, so that a row which lost what it refers
        to is listed under the rule that says so. A rule that nothing can have changed for is not tried.

        Returns:
            what was set aside, in order.
        """
        order = [(table, rule) for table, c in self._contracts.items() for rule in c.relations()]
        for table, rule in list(order):
            if rule.references is not None and rule.references.table not in self._contracts:
                self.skipped.append((table, rule.name, rule.references.table))
                order.remove((table, rule))
        stale = [True] * len(order)
        found = []
        while any(stale):
            at = stale.index(True)
            stale[at] = False
            table, rule = order[at]
            broken = self._broken(table, rule)
            if not len(broken.rows):
                continue
            found.append(broken)
            self._alive[table][broken.rows] = False
            for number, (of, other) in enumerate(order):
                stale[number] |= _depends(of, other) == table
        return found

    def _broken(self, table: str, rule: Rule) -> Broken:
        relation = rule.relation
        if isinstance(relation, References):
            return self._unmatched(table, rule, relation)
        if isinstance(relation, Constant):
            return Broken(table, rule.name, self._varying(table, relation))
        if isinstance(relation, Greatest):
            return Broken(table, rule.name, self._not_greatest(table, relation))
        assert isinstance(relation, Rooted)
        rows = self._bad_roots(table, relation) if relation.only == "roots" else self._lost(table, relation)
        return Broken(table, rule.name, rows)

    def _unmatched(self, table: str, rule: Rule, relation: References) -> Broken:
        """Rows that refer to nothing, or to a row that is not as it should be."""
        link = self._link(table, relation.column, relation.table, relation.target)
        there = link.alive(self._alive[relation.table])
        bit = link.bits.get(rule.name)
        asked = self._alive[table]
        if relation.when:
            these = self._numbers(f"SELECT {ROW} FROM {name(table)} WHERE {matching(relation.when)}")  # noqa: S608
            asked = np.zeros(len(asked), bool)
            asked[these] = self._alive[table][these]
        rows, others = [], []
        for part in _parts(len(link.to)):
            to = link.to[part]
            broken = (to == UNMATCHED) | ((to >= 0) & ~there[np.maximum(to, 0)] if len(there) else to >= 0)
            gone = broken.copy()
            if bit is not None:
                broken |= (link.flaws[part] & bit) != 0
            found = np.flatnonzero(broken & (to != NULL) & asked[part])
            rows.append(found + part.start)
            others.append(np.where(gone[found], UNMATCHED, to[found]).astype(np.int64))
        empty = [np.empty(0, np.int64)]
        return Broken(table, rule.name, np.concatenate(rows or empty), np.concatenate(others or empty))

    def _varying(self, table: str, relation: Constant) -> np.ndarray:
        """Rows of groups with more than one value."""
        names, column = [name(one) for one in relation.within], name(relation.column)
        within, known = ", ".join(names), " AND ".join(f"{one} IS NOT NULL" for one in names)
        left = self._left(table)
        self._database.run(
            f"CREATE OR REPLACE TEMP TABLE mixed AS SELECT {within} FROM {left} "  # noqa: S608
            f"WHERE {known} GROUP BY {within} HAVING min({column}) <> max({column})"
        )
        rows = f"SELECT {ROW} FROM {left} WHERE ({within}) IN (SELECT ({within}) FROM mixed)"  # noqa: S608
        return self._numbers(rows)

    def _not_greatest(self, table: str, relation: Greatest) -> np.ndarray:
        """Rows that should have the greatest value of their group, and do not."""
        column, within, left = name(relation.column), name(relation.within), self._left(table)
        most = f"SELECT {within} AS value, max({column}) AS most FROM {left} GROUP BY {within}"  # noqa: S608
        return self._numbers(
            f"SELECT a.{ROW} FROM {left} a JOIN ({most}) b ON a.{within} = b.value "  # noqa: S608
            f"WHERE {matching(relation.where, 'a')} AND a.{column} < b.most"
        )

    def _bad_roots(self, table: str, relation: Rooted) -> np.ndarray:
        """Roots that are not as they should be, or all rows of the groups that have one."""
        no_parent = f"{name(relation.parent)} IS NULL"
        root = f"{no_parent} AND NOT coalesce({matching(relation.root_where)}, false)"
        left = self._left(table)
        if relation.within is not None:
            within = name(relation.within)
            groups = f"SELECT {within} FROM {left} WHERE {root}"  # noqa: S608
            if relation.sole_is_free:
                groups = (
                    f"SELECT {within} FROM {left} WHERE {no_parent} AND {within} IN ({groups}) "  # noqa: S608
                    f"GROUP BY {within} HAVING count(*) > 1"
                )
                root = "false"
            root = f"({root}) OR {within} IN ({groups})"
        return self._numbers(f"SELECT {ROW} FROM {left} WHERE {root}")  # noqa: S608

    def _lost(self, table: str, relation: Rooted) -> np.ndarray:
        """Rows whose parents lead to no root: each looks twice as far as before, until all are decided."""
        link = self._link(table, relation.parent, table, relation.target)
        alive = self._alive[table]
        to = link.to.copy()
        for part in _parts(len(to)):
            lead = to[part]
            lead[(lead >= 0) & ~alive[np.maximum(lead, 0)]] = UNMATCHED
        for _ in range(len(to).bit_length() + 1):  # in place: a row may already look further, never less far
            going = False
            for part in _parts(len(to)):
                lead = to[part]
                open_ = lead >= 0
                lead[open_] = to[lead[open_]]
                going |= bool((lead >= 0).any())
            if not going:
                break
        return np.flatnonzero(alive & (to != NULL))

    # Joins

    def _left(self, table: str) -> str:
        """SQL: the rows of a table that are left."""
        dead = f"dead_{table}"
        self._database.put(dead, row_table(np.flatnonzero(~self._alive[table])))
        return f"(SELECT * FROM {name(table)} WHERE {ROW} NOT IN (SELECT {ROW} FROM {name(dead)}))"  # noqa: S608

    def _numbers(self, query: str) -> np.ndarray:
        found = [batch.column(0).to_numpy() for batch in self._database.batches(query)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *found]))

    def _link(self, table: str, column: str, other: str, target: str) -> _Link:
        key = (table, column, other, target)
        if key not in self._links:
            unique = target in self._contracts[other].unique_columns()
            self._links[key] = self._joined(*key) if unique else self._grouped(*key)
        return self._links[key]

    def _joined(self, table: str, column: str, other: str, target: str) -> _Link:
        """The link to a column that is unique, with what is wrong with each pair of rows."""
        rules = {
            rule.name: rule.references
            for rule in self._contracts[table].relations()
            if rule.references is not None
            and (rule.references.column, rule.references.table, rule.references.target)
            == (column, other, target)
            and rule.references.compares
        }
        bits = {rule: 1 << number for number, rule in enumerate(rules)}
        flaws = [f"CASE WHEN {flaw(r)} IS NULL THEN 0 ELSE {bits[rule]} END" for rule, r in rules.items()]
        size = self._alive[table].size
        to = np.full(size, NULL, _smallest(max(size, self._alive[other].size)))
        marks = np.zeros(size, np.int32 if len(rules) > 7 else np.int8)
        query = (
            f"SELECT a.{ROW}, coalesce(b.{ROW}, {UNMATCHED}), "  # noqa: S608
            f"CASE WHEN b.{ROW} IS NULL THEN 0 ELSE {' + '.join(flaws) or '0'} END "
            f"FROM {name(table)} a LEFT JOIN {self._left(other)} b ON a.{name(column)} = b.{name(target)} "
            f"WHERE a.{name(column)} IS NOT NULL"
        )
        for batch in self._database.batches(query):
            rows = batch.column(0).to_numpy()
            to[rows] = batch.column(1).to_numpy()
            marks[rows] = batch.column(2).to_numpy()
        return _Link(to, None, self._alive[other].size, marks, bits)

    def _grouped(self, table: str, column: str, other: str, target: str) -> _Link:
        """The link to a column whose values may come several times: to the group of a value."""
        it = name(target)
        self._database.run(
            f"CREATE OR REPLACE TEMP TABLE groups AS SELECT {it} AS value, row_number() OVER () - 1 AS id "  # noqa: S608
            f"FROM (SELECT DISTINCT {it} FROM {self._left(other)} WHERE {it} IS NOT NULL)"
        )
        (groups,) = self._database.one("SELECT count(*) FROM groups")

        def numbers(of: str, by: str) -> np.ndarray:
            found = np.full(self._alive[of].size, NULL, _smallest(groups))
            query = (
                f"SELECT a.{ROW}, coalesce(g.id, {UNMATCHED}) FROM {name(of)} a "  # noqa: S608
                f"LEFT JOIN groups g ON a.{name(by)} = g.value WHERE a.{name(by)} IS NOT NULL"
            )
            for batch in self._database.batches(query):
                found[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
            return found

        to = numbers(table, column)
        return _Link(to, numbers(other, target), int(groups), np.zeros(0, np.int8), {})


def _parts(size: int) -> Iterator[slice]:
    """Slices of an array, so that what is computed on it stays small."""
    for start in range(0, size, _PART):
        yield slice(start, min(start + _PART, size))


def _smallest(count: int) -> Any:
    return np.int32 if count < 2**31 - 2 else np.int64


def _depends(table: str, rule: Rule) -> str | None:
    """The table whose removed rows can make a rule break anew; a mixed group or a root stays what it is."""
    if rule.references is not None:
        return rule.references.table
    if rule.rooted is not None and rule.rooted.only == "others":
        return table
    return None
