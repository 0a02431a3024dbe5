"""Table rules through the whole validation: what they measure, what they say, and when they do not judge."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Contract
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.contracts.validation import Source, validate
from flywheel_tasks.storage.tables import write_rows

FOLDER = Path(__file__).parents[2] / "data_contracts"
TYPES = {"id": "string", "time": "timestamp[us, tz=UTC]", "kind": "string", "text": "string"}


def contract(*rules: dict, row_rules: tuple[dict, ...] = ()) -> Contract:
    return Contract.model_validate(
        {
            "table": "t",
            "description": "-",
            "paths": [],
            "key": "id",
            "time": "time",
            "columns": {
                name: {"type": kind, "nullable": name == "text", "description": "-"}
                for name, kind in TYPES.items()
            },
            "row_rules": row_rules,
            "table_rules": [{"why": "because", "severity": "block", **rule} for rule in rules],
        }
    )


def rows(counts: list[int], text="hello", kind="a", first=date(2026, 11, 2)) -> list[dict]:
    """``counts[n]`` rows on the nth day."""
    return [
        {
            "id": f"{day}-{number}",
            "time": datetime(first.year, first.month, first.day, 12, tzinfo=UTC) + timedelta(days=day),
            "kind": kind,
            "text": text,
        }
        for day, count in enumerate(counts)
        for number in range(count)
    ]


def run(folder: Path, of: Contract, table: list[dict], reference=None, as_of=None):
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(table, arrow_schema(of), folder / "t.parquet")
    source = Source({"t": folder / "t.parquet"}, {"t": of}, folder, None, reference, as_of)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return validate(source, out, folder / "scratch", 200)


def outcome(
    folder: Path, measure: dict, allowed: dict, table: list[dict], *, reference=None, as_of=None, **also
):
    """``(status, observed, note)`` of a contract with this one rule."""
    of = contract({"name": "r", "measure": measure, "allowed": allowed, **also})
    ((_, rule),) = run(folder, of, table, reference, as_of).outcomes(
        "pass", "warn", "block", "not_applicable"
    )
    return rule["status"], rule["observed"], rule["note"]


def profile(folder: Path, measure: dict, table: list[dict]) -> dict:
    of = contract({"name": "r", "measure": measure, "allowed": {"max_value": 0}})
    return run(folder / "before", of, table).profile


REPEATED = [*rows([2]), *rows([1])]


@pytest.mark.parametrize(
    ("measure", "table", "observed"),
    [
        ({"kind": "rows"}, rows([3, 4]), 7),
        ({"kind": "rows", "where": {"kind": "b"}}, [*rows([3]), *rows([2], kind="b")], 2),
        ({"kind": "lacking", "columns": ["id", "kind"]}, [*rows([3]), *rows([2], kind="b")], 1),
        ({"kind": "lacking", "columns": ["id", "kind"]}, [*rows([2]), *rows([2]), *rows([1], kind="b")], 3),
        ({"kind": "lacking", "columns": ["id", "kind"]}, [], 0),
        ({"kind": "distinct", "column": "id"}, REPEATED, 2),
        ({"kind": "repeated", "column": "id"}, REPEATED, 2),
        ({"kind": "repeated", "column": "id"}, rows([3]), 0),
        ({"kind": "null_share", "column": "text"}, [*rows([3]), *rows([0, 1], text=None)], 0.25),
        (
            {"kind": "null_share", "column": "text", "where": {"kind": "b"}},
            [*rows([3]), *rows([0, 1], text=None, kind="b")],
            1,
        ),
        ({"kind": "newest_day"}, rows([10, 20, 30, 5]), 0.25),
        ({"kind": "missing_days"}, rows([1, 0, 0, 1, 1]), 2),
        ({"kind": "age_days"}, rows([1, 1]), 4),
    ],
)
def test_what_is_measured_is_judged_by_its_bounds(tmp_path, measure, table, observed):
    as_of = date(2026, 11, 7)
    assert outcome(tmp_path, measure, {"max_value": observed}, table, as_of=as_of) == ("pass", observed, "")
    over = {"max_value": observed - 0.1}
    assert outcome(tmp_path, measure, over, table, as_of=as_of)[:2] == ("block", observed)
    found = outcome(tmp_path, measure, {"min_value": observed + 0.1}, table, as_of=as_of, severity="warn")
    assert found[:2] == ("warn", observed)


def set_aside(**also) -> Contract:
    """A contract that sets all kinds but ``a`` aside, and judges the share."""
    return contract(
        {
            "name": "r",
            "measure": {"kind": "quarantined_share", "rules": ["known"]},
            "allowed": {"max_value": 0.2},
            **also,
        },
        row_rules=(
            {
                "name": "known",
                "why": "-",
                "expectation": "expect_column_values_to_be_in_set",
                "kwargs": {"column": "kind", "value_set": ["a"]},
            },
        ),
    )


def test_the_share_that_was_set_aside_is_of_the_rows_read(tmp_path):
    validated = run(tmp_path, set_aside(), [*rows([3]), *rows([0, 1], kind="b")])
    assert validated.problems() == [
        "table t breaks the rule r (Share of the rows read that were set aside under known): "
        "observed 0.25, allowed at most 0.2. because"
    ]
    assert validated.report["result"] == "block"
    assert validated.quarantined() == 1


@pytest.mark.parametrize(
    ("left", "lost", "status"),
    [(0, 10, "block"), (1, 9, "block"), (9, 1, "pass"), (0, 9, "not_applicable"), (8, 1, "not_applicable")],
)
def test_a_loss_is_judged_however_few_rows_are_left(tmp_path, left, lost, status):
    table = [*rows([left]), *rows([0, lost], kind="b")]
    validated = run(tmp_path, set_aside(min_rows=10), table)
    ((_, rule),) = validated.outcomes("pass", "warn", "block", "not_applicable")
    assert rule["status"] == status


@pytest.mark.parametrize("now", [[], [1]])
def test_a_fall_in_volume_is_judged_however_few_rows_are_left(tmp_path, now):
    measure, allowed = {"kind": "volume_change"}, {"min_value": 0.4}
    before = profile(tmp_path, measure, rows([10, 10]))
    found = outcome(tmp_path / "now", measure, allowed, rows(now), reference=before, min_rows=20)
    assert found[:2] == ("block", len(now) / 10)
    few = outcome(tmp_path / "few", measure, allowed, rows(now), reference=before, min_rows=21)
    assert few == ("not_applicable", None, "not judged: 20 rows then, the rule needs 21")


LENGTHS = {"kind": "drift", "of": "lengths", "column": "text", "distance": "kolmogorov_smirnov"}
KINDS = {"kind": "drift", "of": "categories", "column": "kind", "distance": "jensen_shannon"}


@pytest.mark.parametrize(
    ("measure", "before", "observed"),
    [
        (LENGTHS, rows([10], text="hello"), 0),
        (LENGTHS, [*rows([5], text="hello"), *rows([0, 5], text="a longer text")], 0.5),
        ({**LENGTHS, "distance": "wasserstein"}, rows([10], text="hello you"), 4),
        (KINDS, rows([10], kind="b"), 1),
        (KINDS, rows([10]), 0),
        ({"kind": "volume_change"}, rows([5, 5]), 2),
        ({"kind": "null_change", "column": "text"}, [*rows([3]), *rows([0, 1], text=None)], 0.25),
    ],
)
def test_the_last_accepted_generation_is_compared_with(tmp_path, measure, before, observed):
    reference = profile(tmp_path, measure, before)
    allowed = {"max_value": observed - 0.1}
    status, found, _ = outcome(tmp_path, measure, allowed, rows([10]), reference=reference)
    assert (status, found) == ("block", pytest.approx(observed))


@pytest.mark.parametrize("measure", [LENGTHS, KINDS, {"kind": "volume_change"}])
def test_without_enough_rows_or_a_generation_before_a_rule_says_that_it_does_not_judge(tmp_path, measure):
    before = profile(tmp_path, measure, rows([10], text="long " * 9, kind="b"))
    allowed = {"max_value": 0}
    first = outcome(tmp_path, measure, allowed, rows([10]))
    assert first == ("not_applicable", None, "not applicable: first generation")
    if measure["kind"] != "volume_change":  # it judges most of all when few are left
        few = outcome(tmp_path, measure, allowed, rows([9]), reference=before, min_rows=10)
        assert few == ("not_applicable", None, "not judged: 9 rows, the rule needs 10")
    status, _, note = outcome(tmp_path, measure, allowed, rows([20]), reference=before, min_rows=11)
    assert status == "not_applicable"
    assert "10" in note
    assert "the rule needs 11" in note
    assert outcome(tmp_path, measure, allowed, rows([10]), reference=before, min_rows=10)[0] == "block"


def test_too_few_days_or_no_partitions_are_not_judged(tmp_path):
    newest = outcome(tmp_path, {"kind": "newest_day"}, {"min_value": 9}, rows([5, 5, 5]))
    assert newest == ("not_applicable", None, "not judged: 2 days before, the rule needs 3")
    age = outcome(tmp_path, {"kind": "age_days"}, {"max_value": 0}, rows([5]))
    assert age == ("not_applicable", None, "not judged: no log partitions")


def test_a_few_events_neither_make_a_log_old_or_early_nor_hide_that_it_is(tmp_path):
    fresh, bounds = {"kind": "age_days"}, {"min_value": -2, "max_value": 3}
    ahead, trickle = rows([20, 20, 20, 0, 0, 0, 0, 0, 1]), rows([20, 20, 20, 0, 0, 0, 0, 1])
    assert outcome(tmp_path, fresh, bounds, ahead, as_of=date(2026, 11, 5)) == ("pass", 1, "")
    assert outcome(tmp_path, fresh, bounds, trickle, as_of=date(2026, 11, 9))[:2] == ("block", 5)
    every = {**fresh, "min_share": 0.001}
    assert outcome(tmp_path, every, bounds, ahead, as_of=date(2026, 11, 5))[:2] == ("block", -5)
    assert outcome(tmp_path, every, bounds, trickle, as_of=date(2026, 11, 9))[:2] == ("pass", 0)


def test_lengths_beyond_the_exact_ones_are_kept_within_five_percent(tmp_path):
    table = [
        {**row, "text": "x" * size} for row, size in zip(rows([5]), (0, 64, 100, 1000, 50_000), strict=True)
    ]
    of = contract({"name": "r", "measure": LENGTHS, "allowed": {"max_value": 0}})
    ((*sizes,),) = [
        [size for size, _ in found["counts"]]
        for found in run(tmp_path, of, table).profile["tables"]["t"]["distributions"].values()
    ]
    assert sizes[:2] == [0, 64]
    for size, exact in zip(sizes[2:], (100, 1000, 50_000), strict=True):
        assert 0.95 * exact <= size <= exact


def test_a_profile_holds_no_text_and_no_user():
    """What the next generation is compared with leaves the workspace: counts, lengths, characters, signals."""
    for contract_ in load_contracts(FOLDER).values():
        for rule in contract_.table_rules:
            if rule.measure.kind == "drift" and rule.measure.of == "categories":
                assert rule.measure.column in ("card_id", "source", "signal", "role", "model")
