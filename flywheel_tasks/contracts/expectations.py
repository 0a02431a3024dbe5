"""Row rules written as Great Expectations expectations, compiled to SQL conditions of the table engine.

A compiled rule marks exactly the rows that Great Expectations marks on a pandas frame (a test compares them, rule by
rule, on random data): a missing value breaks nothing but a rule about missing values, lengths are in code points, and
regular expressions mean what Python's ``re`` means.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flywheel_tasks.contracts.model import Contract, Rule
from flywheel_tasks.contracts.sql import literal, name

# What Python's re takes for white space; RE2 knows only the first six.
_SPACES = r"\t\n\v\f\r \x1c-\x1f\x85\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_PARTS = re.compile(r"\\(.)|\[(?:\\.|[^\]\\])+\]|.", re.DOTALL)
_COMPARE = {"==": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_META = frozenset(
    {
        "column",
        "column_list",
        "column_A",
        "column_B",
        "row_condition",
        "condition_parser",
        "ignore_row_if",
        "result_format",
    }
)


@dataclass(frozen=True)
class Compiled:
    """A rule for the engine.

    Attributes:
        broken: SQL condition, true for a broken row; None for a rule about repeated values.
        unique: columns whose values must occur together only once.
        where: SQL condition of the rows that the rule is about.
    """

    broken: str | None
    unique: tuple[str, ...]
    where: str


def regex(pattern: str) -> str:
    r"""A Python regular expression in the words of RE2.

    Args:
        pattern: made of literals, ``.``, character classes, groups, alternatives, repeats, ``^`` at the start,
            and of the classes only ``\s`` and ``\S``: what else there is means different things in Python and
            RE2, or depends on their versions of Unicode.

    Raises:
        ValueError: it is more than that, or no regular expression.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    out = []
    for match in _PARTS.finditer(pattern):
        part = match.group()
        if part in (r"\s", r"\S"):
            out.append(f"[{'^' * (part[1] == 'S')}{_SPACES}]")
        elif part.startswith("[") and len(part) > 1:
            if r"\S" in part or re.search(r"\\[^s\]\[\\^-]", part) or "[:" in part:
                raise ValueError(f"{pattern!r}: {part} is not supported")
            out.append(part.replace(r"\s", _SPACES))
        elif part == "^" and match.start() == 0:
            out.append(r"\A")
        elif (part.startswith("\\") and part[1].isalnum()) or part in "^$" or "(?" in pattern:
            raise ValueError(f"{pattern!r}: {part} is not supported")
        elif part == ".":
            out.append(r"[^\n]")
        else:
            out.append(part)
    return "".join(out)


def columns_of(rule: Rule) -> list[Any]:
    """The columns that an expectation is about."""
    if "column_A" in rule.kwargs:
        return [rule.kwargs["column_A"], rule.kwargs.get("column_B")]
    return list(rule.kwargs.get("column_list") or [rule.kwargs.get("column")])


def compile_rule(rule: Rule, contract: Contract) -> Compiled:
    """Compile one expectation.

    Args:
        rule: a row rule that is an expectation.
        contract: of its table.

    Raises:
        ValueError: the engine does not know the expectation, an argument, or the type of the column for it.
    """
    kind = str(rule.expectation)
    if kind not in _COMPILERS:
        raise ValueError(f"{kind} is not among the row rules: {', '.join(sorted(_COMPILERS))}")
    allowed, types, compile_ = _COMPILERS[kind]
    if unknown := sorted(set(rule.kwargs) - set(allowed) - _META):
        raise ValueError(f"{kind} does not take {', '.join(unknown)}")
    for column in columns_of(rule):
        if column not in contract.columns:
            raise ValueError(f"there is no column {column} in table {contract.table}")
        found = contract.columns[column].type
        if types and not found.startswith(types):
            raise ValueError(f"{kind} is not for column {column} of type {found}")
    where = "true"
    if (condition := rule.kwargs.get("row_condition")) is not None:
        where = _condition(condition, contract)
    return compile_(rule.kwargs, contract, where)


def value(column: str, contract: Contract) -> str:
    """A column in SQL as pandas sees it: NaN is a missing value."""
    quoted = name(column)
    if contract.columns[column].type != "double":
        return quoted
    # not nullif(x, NaN): a Parquet file's statistics leave NaN out, and the optimiser believes them
    return f"(CASE WHEN isnan({quoted}) THEN NULL ELSE {quoted} END)"


def _typed(item: Any, column: str, contract: Contract) -> Any:
    """A value of a contract that is comparable with its column.

    Raises:
        ValueError: it is of another type.
    """
    kind = contract.columns[column].type
    if kind.startswith("timestamp"):
        moment = datetime.fromisoformat(item) if isinstance(item, str) else item
        if isinstance(moment, datetime):
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    fits = {"string": (str,), "int64": (int, float), "double": (int, float), "bool": (bool,)}.get(kind, ())
    if not isinstance(item, fits) or (isinstance(item, bool) and kind != "bool"):
        raise ValueError(f"{item!r} is not comparable with column {column} of type {kind}")
    return item


def _values(items: Any, column: str, contract: Contract) -> str:
    if not isinstance(items, list | tuple):
        raise ValueError(f"value_set must be a list, not {items!r}")
    return ", ".join(literal(_typed(item, column, contract)) for item in items)


def _condition(condition: Mapping[str, Any], contract: Contract) -> str:
    """A row condition of Great Expectations; in pandas a missing value differs from every value."""
    kind = condition.get("type")
    if kind in ("and", "or"):
        return f"({f' {kind.upper()} '.join(_condition(c, contract) for c in condition['conditions'])})"
    column = (condition.get("column") or {}).get("name")
    if column not in contract.columns:
        raise ValueError(f"row_condition: there is no column {column} in table {contract.table}")
    it = value(column, contract)
    if kind == "nullity":
        return f"{it} IS {'' if condition['is_null'] else 'NOT '}NULL"
    operator, parameter = condition.get("operator"), condition.get("parameter")
    if kind == "comparison" and operator in _COMPARE:
        return f"coalesce({it} {_COMPARE[operator]} {literal(_typed(parameter, column, contract))}, false)"
    if kind == "comparison" and operator == "!=":
        return f"{it} IS DISTINCT FROM {literal(_typed(parameter, column, contract))}"
    if kind == "comparison" and operator in ("IN", "NOT_IN"):
        among = f"coalesce({it} IN ({_values(parameter, column, contract)}), false)"
        return among if operator == "IN" else f"NOT {among}"
    raise ValueError(f"row_condition {dict(condition)!r} is not supported")


_Arguments = Mapping[str, Any]
_Compiler = Callable[[_Arguments, Contract, str], Compiled]


def _nulls(missing: bool) -> _Compiler:
    def compile_(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
        test = "IS NULL" if missing else "IS NOT NULL"
        return Compiled(f"{value(kwargs['column'], contract)} {test}", (), where)

    return compile_


def _set(inside: bool) -> _Compiler:
    def compile_(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
        it, items = (
            value(kwargs["column"], contract),
            _values(kwargs["value_set"], kwargs["column"], contract),
        )
        among = f"{it} IN ({items})" if items else f"({it} IS NOT NULL AND false)"
        return Compiled(f"{it} IS NOT NULL AND {'NOT ' if inside else ''}({among})", (), where)

    return compile_


def _pattern(matches: bool) -> _Compiler:
    def compile_(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
        test = f"regexp_matches({name(kwargs['column'])}, {literal(regex(kwargs['regex']))})"
        return Compiled(f"{'NOT ' if matches else ''}{test}", (), where)

    return compile_


def _bounds(of: Callable[[str, Contract], str], typed: bool) -> _Compiler:
    def compile_(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
        column, tests = kwargs["column"], []
        it = of(column, contract)
        for key, strict, open_, closed in (
            ("min_value", "strict_min", "<=", "<"),
            ("max_value", "strict_max", ">=", ">"),
        ):
            if (bound := kwargs.get(key)) is not None:
                shown = literal(_typed(bound, column, contract) if typed else int(bound))
                tests.append(f"{it} {open_ if kwargs.get(strict) else closed} {shown}")
        if not tests:
            raise ValueError("min_value or max_value is needed")
        return Compiled(f"({' OR '.join(tests)})", (), where)

    return compile_


def _length(column: str, contract: Contract) -> str:
    return f"length({name(column)})"


def _length_is(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
    return Compiled(f"length({name(kwargs['column'])}) <> {int(kwargs['value'])}", (), where)


def _unique(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
    return Compiled(None, (kwargs["column"],), where)


def _unique_together(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
    columns = tuple(kwargs["column_list"])
    if kwargs.get("ignore_row_if") != "any_value_is_missing":
        raise ValueError("ignore_row_if must be any_value_is_missing")
    return Compiled(None, columns, where)


def _differ(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
    items = [name(column) for column in kwargs["column_list"]]
    if kwargs.get("ignore_row_if") != "any_value_is_missing":
        raise ValueError("ignore_row_if must be any_value_is_missing")
    equal = [f"{a} = {b}" for i, a in enumerate(items) for b in items[i + 1 :]]
    whole = [f"{item} IS NOT NULL" for item in items]
    return Compiled(f"({' OR '.join(equal)}) AND {' AND '.join(whole)}", (), where)


def _greater(kwargs: _Arguments, contract: Contract, where: str) -> Compiled:
    first, second = (value(kwargs[key], contract) for key in ("column_A", "column_B"))
    if kwargs.get("ignore_row_if") != "either_value_is_missing":
        raise ValueError("ignore_row_if must be either_value_is_missing")
    return Compiled(f"{first} {'<' if kwargs.get('or_equal') else '<='} {second}", (), where)


_SCALARS = ("string", "int64", "double", "bool", "timestamp")
_BOUNDS = ("min_value", "max_value", "strict_min", "strict_max")
# Arguments, types of the column (all of them if empty), and how it is compiled.
_COMPILERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], _Compiler]] = {
    "expect_column_values_to_not_be_null": ((), (), _nulls(True)),
    "expect_column_values_to_be_null": ((), (), _nulls(False)),
    "expect_column_values_to_be_in_set": (("value_set",), _SCALARS, _set(True)),
    "expect_column_values_to_not_be_in_set": (("value_set",), _SCALARS, _set(False)),
    "expect_column_values_to_match_regex": (("regex",), ("string",), _pattern(True)),
    "expect_column_values_to_not_match_regex": (("regex",), ("string",), _pattern(False)),
    "expect_column_value_lengths_to_be_between": (_BOUNDS, ("string",), _bounds(_length, False)),
    "expect_column_value_lengths_to_equal": (("value",), ("string",), _length_is),
    "expect_column_values_to_be_between": (
        _BOUNDS, ("int64", "double", "timestamp"), _bounds(value, True),
    ),
    "expect_column_values_to_be_unique": ((), _SCALARS, _unique),
    "expect_compound_columns_to_be_unique": (("ignore_row_if",), ("string", "int64"), _unique_together),
    "expect_select_column_values_to_be_unique_within_record": (
        ("ignore_row_if",), ("string", "int64"), _differ,
    ),
    "expect_column_pair_values_a_to_be_greater_than_b": (
        ("or_equal", "ignore_row_if"), ("int64", "double", "timestamp"), _greater,
    ),
}  # fmt: skip
