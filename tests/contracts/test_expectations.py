"""The compiled rules against Great Expectations itself: the same rows are marked."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts.expectations import compile_rule, regex
from flywheel_tasks.contracts.judge import Judge, check_expectations
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Contract
from flywheel_tasks.contracts.rows import broken_by_expectations
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.contracts.sql import Database
from flywheel_tasks.contracts.words import in_words

CONTRACTS = Path(__file__).parents[2] / "data_contracts"
IS_USER = {"type": "comparison", "column": {"name": "b"}, "operator": "==", "parameter": "user"}


def comparison(operator, parameter, column="b"):
    return {"type": "comparison", "column": {"name": column}, "operator": operator, "parameter": parameter}


def either(kind, *conditions):
    return {"type": kind, "conditions": list(conditions)}


# name: expectation, kwargs
RULES = {
    "not_null": ("expect_column_values_to_not_be_null", {"column": "a"}),
    "not_nan": ("expect_column_values_to_not_be_null", {"column": "x"}),
    "null": ("expect_column_values_to_be_null", {"column": "a"}),
    "in_set": ("expect_column_values_to_be_in_set", {"column": "b", "value_set": ["user", "it's"]}),
    "in_no_set": ("expect_column_values_to_be_in_set", {"column": "b", "value_set": []}),
    "in_numbers": ("expect_column_values_to_be_in_set", {"column": "n", "value_set": [1, 2]}),
    "not_in_set": ("expect_column_values_to_not_be_in_set", {"column": "b", "value_set": ["user", ""]}),
    "matches": ("expect_column_values_to_match_regex", {"column": "a", "regex": r"\S"}),
    "matches_start": ("expect_column_values_to_match_regex", {"column": "a", "regex": r"^(a|é)+.[^b\s]?"}),
    "matches_not": ("expect_column_values_to_not_match_regex", {"column": "a", "regex": r"\s{2}|b"}),
    "length": ("expect_column_value_lengths_to_be_between", {"column": "a", "min_value": 2, "max_value": 4}),
    "length_strict": (
        "expect_column_value_lengths_to_be_between",
        {"column": "a", "min_value": 1, "strict_min": True},
    ),
    "length_is": ("expect_column_value_lengths_to_equal", {"column": "a", "value": 2}),
    "between": ("expect_column_values_to_be_between", {"column": "n", "min_value": -1, "max_value": 2}),
    "between_floats": (
        "expect_column_values_to_be_between",
        {"column": "x", "min_value": 0.5, "strict_min": True},
    ),
    "between_times": (
        "expect_column_values_to_be_between",
        {"column": "t", "max_value": "2026-11-02T10:00:00+00:00"},
    ),
    "unique": ("expect_column_values_to_be_unique", {"column": "a"}),
    "unique_numbers": ("expect_column_values_to_be_unique", {"column": "n"}),
    "unique_together": (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["b", "n"], "ignore_row_if": "any_value_is_missing"},
    ),
    "differ": (
        "expect_select_column_values_to_be_unique_within_record",
        {"column_list": ["a", "b"], "ignore_row_if": "any_value_is_missing"},
    ),
}
RULES["greater"] = (
    "expect_column_pair_values_a_to_be_greater_than_b",
    {"column_A": "n", "column_B": "x", "ignore_row_if": "either_value_is_missing"},
)
RULES["greater_or_equal"] = (RULES["greater"][0], {**RULES["greater"][1], "or_equal": True})
CONDITIONS = {
    "equal": IS_USER,
    "unequal": comparison("!=", "user"),
    "less": comparison("<", 2, "n"),
    "in": comparison("IN", ["user", "a"]),
    "not_in": comparison("NOT_IN", ["user", "a"]),
    "is_null": {"type": "nullity", "column": {"name": "b"}, "is_null": True},
    "is_not_null": {"type": "nullity", "column": {"name": "b"}, "is_null": False},
    "and": either("and", comparison(">=", 1, "n"), IS_USER),
    "or": either("or", comparison(">", 1, "n"), IS_USER),
    "true": comparison("==", True, "k"),
    "false": comparison("==", False, "k"),
}
SPACES = [" ", "\u00a0", "\x1c", "\x85", "\u1680", "\u200a", "\u200b", "\u2029", "\u3000", "\v", "", "x"]
TYPES = {"a": "string", "b": "string", "n": "int64", "x": "double", "t": "timestamp[us, tz=UTC]", "k": "bool"}


def contract(rules) -> Contract:
    columns = {name: {"type": kind, "nullable": True, "description": "-"} for name, kind in TYPES.items()}
    rows = [{"name": n, "why": "-", "expectation": e, "kwargs": k} for n, (e, k) in rules.items()]
    return Contract.model_validate(
        {"table": "t", "description": "-", "paths": [], "key": "a", "columns": columns, "row_rules": rows}
    )


WORDS = st.one_of(
    st.text(alphabet="ab é\u00a0\u2003\x1c\n\v😀'", max_size=4), st.sampled_from(["user", "a", "", "it's"])
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "a": st.none() | WORDS,
            "b": st.none() | WORDS,
            "n": st.none() | st.integers(-3, 3),
            "x": st.none() | st.sampled_from([0.0, 0.5, 0.75, float("nan"), float("inf")]),
            "k": st.none() | st.booleans(),
            "t": st.none() | st.datetimes(pd.Timestamp("2026-11-02"), pd.Timestamp("2026-11-03")),
        }
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def judge():
    return Judge()


def marks_of_both(judge, folder, rows, of: Contract) -> tuple[dict, dict]:
    """``{rule: rows}`` that the table engine marks, and that Great Expectations marks on a pandas frame."""
    times = [None if row["t"] is None else pd.Timestamp(row["t"], tz="UTC") for row in rows]
    table = pa.Table.from_pylist(
        [{**row, "t": time} for row, time in zip(rows, times, strict=True)], schema=arrow_schema(of)
    )
    pq.write_table(table, folder / "t.parquet")
    ours = {}
    with Database(folder / "scratch", 200, threads=1) as database:
        database.attach("t", folder / "t.parquet")
        for rule in of.row_rules:
            ((_, marked),) = broken_by_expectations(database, of.model_copy(update={"row_rules": (rule,)}))
            ours[rule.name] = marked.tolist()
    frame = table.to_pandas().astype({"a": "str", "b": "str"})
    expected = judge.check("t", frame, of.row_rules, Path("t.yaml"))
    return ours, {rule.name: sorted(e.broken) for rule, e in zip(of.row_rules, expected, strict=True)}


ALL = contract(RULES)
SELECTIONS = contract(
    {
        name: (
            "expect_column_values_to_match_regex",
            {"column": "a", "regex": r"\S", "row_condition": condition},
        )
        for name, condition in CONDITIONS.items()
    }
)


@pytest.mark.filterwarnings("ignore:This pattern is interpreted")
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
@example([{"a": text, "b": "user", "n": 1, "x": 1.0, "t": None, "k": True} for text in SPACES])
@example(
    [
        {"a": "a", "b": "b", "n": n, "x": x, "t": None, "k": True}
        for n, x in enumerate((float("nan"), 0.5, 0.75, 0.0))
    ]
)
def test_every_rule_marks_the_rows_that_great_expectations_marks(judge, tmp_path, rows):
    ours, theirs = marks_of_both(judge, tmp_path, rows, ALL)
    assert ours == theirs


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_every_row_condition_selects_the_rows_that_great_expectations_selects(judge, tmp_path, rows):
    ours, theirs = marks_of_both(judge, tmp_path, rows, SELECTIONS)
    assert ours == theirs


def test_every_rule_says_in_words_what_it_wants():
    said = {rule.name: in_words(rule) for rule in contract(RULES).row_rules}
    assert said["matches"] == "a must not be blank"
    assert said["in_set"] == "b must be one of user, it's"
    assert said["length_strict"] == "a must have above 1 characters"
    assert said["between"] == "n must be at least -1 and at most 2"
    assert said["unique_together"] == "b and n must be together in one row only"
    assert said["greater_or_equal"] == "n must be greater than x or equal to it"
    assert not [text for text in said.values() if "expect_" in text]


def test_a_row_is_listed_under_the_first_rule_it_breaks(tmp_path):
    of = contract({name: RULES[name] for name in ("not_null", "matches", "length", "unique")})
    rows = [{"a": text} for text in (None, "", "aaaaa", "aa", "aa", "aaaaa")]
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(of)), tmp_path / "t.parquet")
    with Database(tmp_path / "scratch", 200, threads=1) as database:
        database.attach("t", tmp_path / "t.parquet")
        found = {rule: marked.tolist() for rule, marked in broken_by_expectations(database, of)}
    assert found == {"not_null": [0], "matches": [1], "length": [2, 5], "unique": [3, 4]}


@pytest.mark.parametrize(
    "pattern", [r"\bno\b", r"\d", r"\w", "(?i)a", "a$", "a^b", r"[\S]", "[[:alpha:]]", r"(a)\1", "(", r"[\d]"]
)
def test_a_regular_expression_that_could_mean_something_else_is_refused(pattern):
    with pytest.raises(ValueError, match=r"not supported|no regular expression"):
        regex(pattern)


@pytest.mark.parametrize(
    ("expectation", "kwargs", "message"),
    [
        ("expect_column_values_to_be_in_set", {"column": "n", "value_set": ["1"]}, "'1' is not comparable"),
        ("expect_column_values_to_be_in_set", {"column": "b", "value_set": "user"}, "must be a list"),
        (
            "expect_column_values_to_be_between",
            {"column": "a", "min_value": 1},
            "is not for column a of type",
        ),
        ("expect_column_values_to_be_between", {"column": "n"}, "min_value or max_value is needed"),
        ("expect_column_values_to_be_unique", {"column": "z"}, "no column z"),
        ("expect_column_values_to_be_unique", {"column": "a", "mostly": 0.9}, "does not take mostly"),
        ("expect_table_row_count_to_be_between", {"min_value": 1}, "is not among the row rules"),
        (
            "expect_column_values_to_be_null",
            {"column": "a", "row_condition": comparison("LIKE", "x")},
            "is not supported",
        ),
    ],
)
def test_a_rule_that_cannot_be_computed_is_refused_with_the_reason(expectation, kwargs, message):
    of = contract({"x": (expectation, kwargs)})
    with pytest.raises(ValueError, match=message):
        compile_rule(of.row_rules[0], of)


def test_great_expectations_takes_every_rule_of_the_contracts():
    check_expectations(load_contracts(CONTRACTS), CONTRACTS)
