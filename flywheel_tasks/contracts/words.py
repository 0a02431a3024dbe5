"""What an expectation wants of a row, in words: for the quarantine, whose readers know no names of expectations."""

from collections.abc import Callable, Mapping
from typing import Any

from flywheel_tasks.contracts.model import Rule

_Arguments = Mapping[str, Any]


def _listed(kwargs: _Arguments) -> str:
    return ", ".join(map(str, kwargs["value_set"]))


def _within(kwargs: _Arguments) -> str:
    words = (
        ("min_value", "strict_min", "above", "at least"),
        ("max_value", "strict_max", "under", "at most"),
    )
    return " and ".join(
        f"{open_ if kwargs.get(strict) else closed} {kwargs[key]}"
        for key, strict, open_, closed in words
        if kwargs.get(key) is not None
    )


def _pattern(kwargs: _Arguments) -> str:
    return "not be blank" if kwargs["regex"] == r"\S" else f"match the pattern {kwargs['regex']}"


def _greater(kwargs: _Arguments) -> str:
    equal = " or equal to it" if kwargs.get("or_equal") else ""
    return f"be greater than {kwargs['column_B']}{equal}"


_MUST: dict[str, Callable[[_Arguments], str]] = {
    "expect_column_values_to_not_be_null": lambda _: "have a value",
    "expect_column_values_to_be_null": lambda _: "have no value",
    "expect_column_values_to_be_in_set": lambda of: f"be one of {_listed(of)}",
    "expect_column_values_to_not_be_in_set": lambda of: f"be none of {_listed(of)}",
    "expect_column_values_to_match_regex": _pattern,
    "expect_column_values_to_not_match_regex": lambda of: f"not match the pattern {of['regex']}",
    "expect_column_value_lengths_to_be_between": lambda of: f"have {_within(of)} characters",
    "expect_column_value_lengths_to_equal": lambda of: f"have {of['value']} characters",
    "expect_column_values_to_be_between": lambda of: f"be {_within(of)}",
    "expect_column_values_to_be_unique": lambda _: "be in one row only",
    "expect_compound_columns_to_be_unique": lambda _: "be together in one row only",
    "expect_select_column_values_to_be_unique_within_record": lambda _: "differ",
    "expect_column_pair_values_a_to_be_greater_than_b": _greater,
}


def condition(of: Mapping[str, Any]) -> str:
    """A row condition in words.

    Args:
        of: Great Expectations' ``row_condition``.
    """
    if "conditions" in of:
        return f" {of['type']} ".join(condition(item) for item in of["conditions"])
    column = of["column"]["name"]
    if of.get("type") == "nullity":
        return f"{column} is {'' if of['is_null'] else 'not '}null"
    return f"{column} {of['operator']} {of['parameter']!r}"


def in_words(rule: Rule) -> str:
    """What the rule wants, as ``text must not be blank``.

    Args:
        rule: one that is an expectation which the engine knows.
    """
    of = rule.kwargs
    columns = of.get("column_list") or [of.get("column") or of["column_A"]]
    where = f" where {condition(of['row_condition'])}" if of.get("row_condition") else ""
    return f"{' and '.join(map(str, columns))} must {_MUST[str(rule.expectation)](of)}{where}"
