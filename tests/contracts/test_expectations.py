"""The compiled rules against Great Expectations itself: the same rows are marked."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts.expectations import compile_rule, regex
from flywheel_tasks.contracts.judge import Judge, check_expectations
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Contract, Rule
from flywheel_tasks.contracts.rows import broken_by_expectations
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.contracts.sql import Database

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
}
SPACES = [" ", "\u00a0", "\x1c", "\x85", "\u1680", "\u200a", "\u200b", "\u2029", "\u3000", "\v", "", "x"]
TYPES = {"a": "string", "b": "string", "n": "int64", "x": "double", "t": "timestamp[us, tz=UTC]"}


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
            "t": st.none() | st.datetimes(pd.Timestamp("2026-11-02"), pd.Timestamp("2026-11-03")),
        }
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def judge():
    return Judge()


def engine_marks(folder: Path, rows, rule: Rule, of: Contract) -> list[int]:
    table = pa.Table.from_pylist(
        [{**row, "t": None if row["t"] is None else pd.Timestamp(row["t"], tz="UTC")} for row in rows],
        schema=arrow_schema(of),
    )
    pq.write_table(table, folder / "t.parquet")
    with Database(folder / "scratch", 200, threads=1) as database:
        database.attach("t", folder / "t.parquet")
        single = of.model_copy(update={"row_rules": (rule,)})
        ((_, marked),) = broken_by_expectations(database, single)
    return marked.tolist()


def marks_of_both(judge, folder, rows, rule: Rule, of: Contract) -> tuple[list[int], list[int]]:
    ours = engine_marks(folder, rows, rule, of)
    frame = pq.read_table(folder / "t.parquet").to_pandas()
    frame["a"], frame["b"] = frame["a"].astype("str"), frame["b"].astype("str")
    (theirs,) = judge.check("t", frame, [rule], Path("t.yaml"))
    return ours, sorted(theirs.broken)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_marks_the_rows_that_great_expectations_marks(judge, tmp_path, name):
    of = contract({name: RULES[name]})

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(ROWS)
    @example([{"a": text, "b": "user", "n": 1, "x": 1.0, "t": None} for text in SPACES])
    def compare(rows):
        ours, theirs = marks_of_both(judge, tmp_path, rows, of.row_rules[0], of)
        assert ours == theirs

    compare()


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_row_condition_selects_the_rows_that_great_expectations_selects(judge, tmp_path, name):
    kwargs = {"column": "a", "regex": r"\S", "row_condition": CONDITIONS[name]}
    of = contract({name: ("expect_column_values_to_match_regex", kwargs)})

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(ROWS)
    def compare(rows):
        ours, theirs = marks_of_both(judge, tmp_path, rows, of.row_rules[0], of)
        assert ours == theirs

    compare()
