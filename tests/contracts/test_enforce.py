"""What a stage writes is held to its contract before it appears."""

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.annotation import schemas as annotation
from flywheel_tasks.contracts.enforce import contract_of, enforce, holds
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import Allowed, ContractError
from flywheel_tasks.contracts.schema import arrow_schema
from flywheel_tasks.conversations import schemas as conversations
from flywheel_tasks.curation import tables as curation
from flywheel_tasks.evaluation.replies import REPLIES
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.policy import rejection_sampling as rejection
from flywheel_tasks.policy.heldout import HELDOUT
from flywheel_tasks.policy.safe_steps import CHECKS
from flywheel_tasks.policy.selection import SELECTION
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.tables import write_rows
from tests.annotation.tasks_of_tests import label, task
from tests.curation.rows import prompt

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "data_contracts"
CONTRACTS = load_contracts(FOLDER)
GRAPH = load_graph(PROJECT / "dvc.yaml")
CARD = {"card_id": "card-1", "name": "Mae", "traits": [], "instructions": []}
SCHEMAS = {
    "conversation_prompts": conversations.TIMED_PROMPTS,
    "siblings": conversations.SIBLINGS,
    "problem_events": conversations.PROBLEMS,
    "card_sheets": curation.CARDS,
    "prompts": curation.PROMPTS,
    "removed_prompts": curation.REMOVED,
    "pairs": annotation.PAIRS,
    "rewrites": annotation.REWRITES,
    "removed_pairs": annotation.REMOVED,
    "annotation_items": annotation.ITEMS,
    "annotators": annotation.ANNOTATORS,
    "duplicates": curation.DUPLICATES,
    "clusters": curation.CLUSTERS,
    "sample": curation.SAMPLE,
    "rejection_candidates": rejection.CANDIDATES,
    "rejection_accepted": rejection.ACCEPTED,
    "rl_selection": SELECTION,
    "rl_heldout": HELDOUT,
    "rl_checks": CHECKS,
    "evaluation_replies": REPLIES,
}


@pytest.mark.parametrize("table", list(SCHEMAS))
def test_contracts_have_the_columns_that_stages_write(table):
    assert arrow_schema(CONTRACTS[table]) == SCHEMAS[table]


def test_every_path_of_a_contract_is_written_by_a_stage_that_is_held_to_it():
    """But for the tables of events, which are set right by the stage ``validate``."""
    checked = [out for stage in GRAPH.values() for out in stage.checked]
    for contract in CONTRACTS.values():
        for path in contract.paths:
            raw = path.startswith(("data/ingested/", "data/validated/"))
            assert any(path == out or path.startswith(out + "/") for out in checked) != raw, path
    assert {name for name, stage in GRAPH.items() if stage.unchecked is not None} == {"ingest", "validate"}


def test_a_path_has_one_contract():
    for contract in CONTRACTS.values():
        for path in contract.paths:
            assert contract_of(path, CONTRACTS) is contract
    assert contract_of("data/curated/vectors.parquet", CONTRACTS) is None


def split_of(folder: Path, *rows, cards=(CARD,)):
    """The outputs and inputs of a stage that writes one split."""
    write_rows(list(rows), curation.PROMPTS, folder / "split/evaluation.parquet")
    write_rows(list(cards), curation.CARDS, folder / "curated/cards.parquet")
    return {"data/split": folder / "split"}, {"data/curated": folder / "curated"}


def sound(number: int, **changes):
    return {**prompt(f"p{number}"), "card_id": "card-1", "turn": 1, **changes}


def check(folder: Path, written, read):
    return enforce(written, read, FOLDER, folder / "scratch", 100)


def test_sound_tables_pass_and_are_named(tmp_path):
    written, read = split_of(tmp_path, sound(1), sound(2))
    write_rows([], curation.REMOVED, tmp_path / "split/removed.parquet")
    (tmp_path / "split/record.json").write_text("{}")
    assert check(tmp_path, written, read) == ["data/split/evaluation.parquet", "data/split/removed.parquet"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([sound(1), sound(2, source="bot")], r"row 2 \(prompt_id p2\) breaks the rule known_source"),
        ([sound(1, turn=0)], r"row 1 \(prompt_id p1\) breaks the rule turn_below_one"),
        ([sound(1), sound(1)], r"row 1 .*, 2 .* breaks the rule repeated_prompt_id"),
        ([sound(1), sound(2, card_id="card-9")], r"row 2 .* breaks the rule missing_card"),
        ([sound(1, user_id=None)], r"row 1 .* breaks the rule null_user_id"),
        ([sound(n, turn=0) for n in range(5)], r"row 1 .*, 2 .*, 3 .* and 2 more"),
    ],
)
def test_a_broken_row_is_named_with_table_row_and_rule(tmp_path, rows, message):
    with pytest.raises(ContractError, match=message) as error:
        check(tmp_path, *split_of(tmp_path, *rows))
    assert "data/split/evaluation.parquet: table prompts: " in str(error.value)
    assert all(row["history"][-1]["content"] not in str(error.value) for row in rows)


def test_other_columns_are_named(tmp_path):
    written, read = split_of(tmp_path, sound(1))
    write_rows([CARD], curation.CARDS, tmp_path / "split/evaluation.parquet")
    with pytest.raises(ContractError, match=r"evaluation\.parquet: table prompts breaks the rule columns"):
        check(tmp_path, written, read)


def test_a_reference_to_what_the_stage_does_not_have_is_an_error(tmp_path):
    written, _ = split_of(tmp_path, sound(1))
    with pytest.raises(ContractError, match="missing_card refers to table card_sheets"):
        check(tmp_path, written, {})


def test_lines_are_read_as_the_contract_says(tmp_path):
    of = task()
    batch, labels = tmp_path / "batch.jsonl", tmp_path / "labels.jsonl"
    write_jsonl([of], batch)
    places = ({"data/annotation/labels.jsonl": labels}, {"data/annotation/batch.jsonl": batch})
    write_jsonl([label(of), label(of, annotator="a2")], labels)
    assert check(tmp_path, *places) == ["data/annotation/labels.jsonl"]
    write_jsonl([label(of), {**label(of), "task_id": "t9"}], labels)
    with pytest.raises(ContractError, match=r"row 2 \(task_id t9\) breaks the rule missing_task"):
        check(tmp_path, *places)
    write_jsonl([label(of), {**label(of), "mood": "good"}], labels)
    with pytest.raises(ContractError, match="table labels: line 2: unknown columns: mood"):
        check(tmp_path, *places)
    write_jsonl([{**of, "history": [{"role": 1}]}], batch)
    with pytest.raises(
        ContractError, match=r"batch\.jsonl: table annotation_tasks: line 1: history: a value has not its"
    ):
        check(tmp_path, {"data/annotation/batch.jsonl": batch}, {})
    write_jsonl([of, {**of, "history": [{"role": 1}]}], batch)
    write_jsonl([label(of)], labels)
    with pytest.raises(
        ContractError, match=r"batch\.jsonl: table annotation_tasks: line 2: history: a value"
    ):
        check(tmp_path, *places)  # what labels refer to may be among the lines that are no rows


def test_a_table_rule_that_blocks_stops_and_one_that_warns_is_told(tmp_path, capsys):
    write_rows([], annotation.PAIRS, tmp_path / "pairs.parquet")
    write_jsonl([task()], tmp_path / "batch.jsonl")
    read = {"data/annotation/batch.jsonl": tmp_path / "batch.jsonl"}
    with pytest.raises(ContractError, match=r"pairs\.parquet: table pairs breaks the rule has_pairs"):
        check(tmp_path, {"data/preferences/pairs.parquet": tmp_path / "pairs.parquet"}, read)
    check(tmp_path, *split_of(tmp_path))
    assert "table prompts breaks the rule has_prompts: observed 0" in capsys.readouterr().out


NUMBERS = st.floats(allow_nan=True, allow_infinity=False, width=32)


@given(number=NUMBERS, low=st.none() | st.integers(-5, 5), above=st.none() | st.integers(0, 5))
def test_bounds_are_both_included(number, low, above):
    high = None if above is None else above + (low or 0)
    if low is None and high is None:
        return
    inside = not math.isnan(number) and (low if low is not None else number) <= number
    inside = inside and number <= (high if high is not None else number)
    assert holds(number, Allowed(min_value=low, max_value=high)) == inside


def test_a_stage_whose_table_breaks_its_contract_leaves_no_output(tmp_path, make_workspace):
    root = make_workspace(tmp_path)
    shutil.rmtree(root / "data_contracts")
    shutil.copytree(FOLDER, root / "data_contracts")
    path = root / "data_contracts/annotation_items.yaml"
    path.write_text(path.read_text().replace("min_value: 1}", "min_value: 9}"))
    of = task(texts=("one two three", "four five six"), user="u_" + "0" * 32)
    write_jsonl([of], root / "data/annotation/batch.jsonl")
    write_jsonl([label(of)], root / "data/annotation/labels.jsonl")
    with pytest.raises(ContractError, match=r"items\.parquet: table annotation_items: row 1 .* no_review"):
        run_stage("annotate", root)
    assert not (root / "data/preferences").exists()
    path.write_text((FOLDER / "annotation_items.yaml").read_text())
    run_stage("annotate", root)
    assert (root / "data/preferences/items.parquet").exists()
