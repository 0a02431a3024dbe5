"""Tasks with known answers: they look like the others, measure annotators, and teach nothing."""

import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest

from flywheel_tasks.annotation.gold import GoldItem, accuracy_of, checks, gold_tasks, load_gold, mixed
from flywheel_tasks.annotation.interface import interface_id
from flywheel_tasks.annotation.label_studio import task_data
from flywheel_tasks.annotation.pairs import run
from flywheel_tasks.annotation.progress import done_share, progress
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.settings import GoldItems
from flywheel_tasks.simulation.annotators import label_batch
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.tables import read_rows
from tests.annotation.tasks_of_tests import label, task

FOLDER = Path(__file__).parents[2] / "gold_items"
ITEMS = load_gold(FOLDER)
LIMITS = GoldItems(min_items=5, min_accuracy=0.7)
USER = "u_" + "0" * 32


def batch(count=40, kind="comparison", texts=("one a b", "two a b", "three a b")):
    return [task(f"t{k}", texts=texts, kind=kind, reviews=1 + k % 2, user=USER) for k in range(count)]


def right(of, annotator="good", wrong=False):
    """A label that gives all known answers of a gold task, or none of them."""
    made = label(of, annotator=annotator)
    for candidate, answers in of["gold"]["answers"].items():
        for name, answer in answers.items():
            made["answers"][candidate][name] = answer != wrong
    worse = {second for _, second in of["gold"]["better"]}
    made["ranking"] = sorted(made["answers"], key=lambda candidate: (candidate in worse) != wrong)
    return made


def test_the_items_that_come_with_the_project_are_sound_and_know_something():
    assert len(ITEMS) >= 10
    assert all(item.better for item in ITEMS)
    assert all(len(item.replies) == 3 for item in ITEMS), "annotation_batch.candidates shows three"


def test_gold_tasks_are_the_share_asked_for_and_look_like_the_others():
    tasks = batch()
    gold = gold_tasks(ITEMS, tasks, 0.2, seed=3)
    assert len(gold) == 10  # of 50
    whole = mixed(tasks, gold, seed=3)
    assert [of for of in whole if of["purpose"] != "gold"] == tasks
    assert sorted(of["task_id"] for of in whole) == sorted(of["task_id"] for of in [*tasks, *gold])
    assert [of["purpose"] for of in whole[-10:]] != ["gold"] * 10
    assert {(interface_id(of), of["reviews"]) for of in gold} == {
        (interface_id(of), of["reviews"]) for of in tasks
    }
    assert set(task_data(gold[0])) == set(task_data(tasks[0]))
    assert "gold" not in json.dumps(task_data(gold[0])).lower(), "annotators must not see it"
    assert gold_tasks(ITEMS, tasks, 0.2, seed=3) == gold
    assert gold_tasks(ITEMS, tasks, 0.2, seed=4) != gold
    assert gold_tasks(ITEMS, tasks, 0.0, seed=3) == []
    assert mixed(tasks, [], seed=3) == tasks


def test_an_item_with_other_replies_is_another_task():
    item = ITEMS[0]
    other = item.model_copy(update={"replies": (*item.replies[:-1], "Quite another reply.")})
    [first], [second] = (gold_tasks([one], batch(), 0.01, seed=1) for one in (item, other))
    assert first["task_id"] != second["task_id"]
    assert [one["drawn"] for one in first["candidates"]] == [one["drawn"] for one in second["candidates"]]


def test_items_that_would_stand_out_are_not_used():
    with pytest.raises(AnnotationError, match=r"no item has as many replies .*4"):
        gold_tasks(ITEMS, batch(texts=("a", "b", "c", "d")), 0.1, seed=1)
    odd = GoldItem.model_validate({**ITEMS[0].model_dump(), "answers": {"mood": [True, False, None]}})
    with pytest.raises(AnnotationError, match="answers mood, which the batch does not ask"):
        gold_tasks([odd], batch(), 0.1, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": [[0, 3]]}, "numbers below 3"),
        ({"better": [[1, 1]]}, "numbers below 3"),
        ({"better": [[0, 1], [1, 2], [2, 0]]}, "goes in a circle"),
        ({"answers": {"templated": [True]}}, "answers.templated: 1 for 3 replies"),
        ({"answers": {}, "better": []}, "nothing is known"),
        ({"replies": ["a b", "a  b", "c"]}, "two are the same"),
        ({"history": [{"role": "assistant", "content": "x"}]}, "end with the user's turn"),
        ({"mood": "good"}, "Extra inputs"),
    ],
)
def test_a_wrong_item_is_named_by_file_and_line(tmp_path, change, message):
    good = ITEMS[0].model_dump(mode="json")
    lines = [json.dumps(good), json.dumps({**good, "gold_id": "other", **change})]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    with pytest.raises(AnnotationError, match=message) as error:
        load_gold(tmp_path)
    assert "mine.jsonl:2: no gold item" in str(error.value)


def test_items_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(BOM_UTF8 + ITEMS[0].model_dump_json().encode())
    assert load_gold(tmp_path) == [ITEMS[0]]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"templated": ["no", None, None]}, r'answers\.templated: "no" is none of true, false'),
        ({"tone": [None, "Warm", None]}, r'answers\.tone: "Warm" is none of "warm", "cold"'),
        ({"tone": [True, None, None]}, r'answers\.tone: true is none of "warm", "cold"'),
    ],
)
def test_an_answer_that_nobody_can_give_is_named(answers, told):
    """By it every annotator would be wrong, and flagged."""
    tasks = batch()
    for of in tasks:
        of["questions"] = [
            *of["questions"],
            {"name": "tone", "text": "Its tone?", "choices": ["warm", "cold"]},
        ]
    item = GoldItem.model_validate(ITEMS[0].model_dump() | {"answers": answers})
    with pytest.raises(AnnotationError, match=f"gold_items: {item.gold_id}: {told}"):
        gold_tasks([item], tasks, 0.1, seed=1)
    sound = GoldItem.model_validate(ITEMS[0].model_dump() | {"answers": {"tone": ["cold", None, "warm"]}})
    assert gold_tasks([sound], tasks, 0.1, seed=1)


def test_an_id_that_repeats_is_named(tmp_path):
    (tmp_path / "mine.jsonl").write_text(f"{ITEMS[0].model_dump_json()}\n\n{ITEMS[0].model_dump_json()}\n")
    with pytest.raises(AnnotationError, match=r"mine\.jsonl:3: gold_id .* is there twice"):
        load_gold(tmp_path)


def test_accuracy_is_the_share_of_what_is_known():
    gold = gold_tasks(ITEMS, batch(), 0.2, seed=3)
    labels = [right(of) for of in gold] + [right(of, "bad", wrong=True) for of in gold]
    tie = label(gold[0], order=((0, 1, 2),))
    assert set(checks(gold[0], tie)[-len(gold[0]["gold"]["better"]) :]) == {0.5}
    found = accuracy_of(gold, [*labels, label(task("other"), annotator="nobody")])
    assert set(found) == {"good", "bad"}
    assert (found["good"].items, found["good"].value) == (10, 1.0)
    assert found["bad"].value == 0.0
    assert not found["good"].fails(LIMITS)
    assert found["bad"].fails(LIMITS)
    assert not accuracy_of(gold[:4], labels)["bad"].fails(LIMITS), "too few to say"


def workspace(make_io, root, exclude):
    tasks = batch(kind="steerability")
    gold = gold_tasks(ITEMS, tasks, 0.2, seed=3)
    labels = [label(of, annotator=name) for of in tasks for name in ("good", "bad")[: of["reviews"]]]
    labels += [right(of) for of in gold] + [right(of, "bad", wrong=True) for of in gold]
    io = make_io("annotate", root, {"annotate.annotators.exclude_flagged": exclude})
    write_jsonl(mixed(tasks, gold, 3), root / "data/annotation/batch.jsonl")
    write_jsonl(labels, root / "data/annotation/labels.jsonl")
    return io, tasks, gold, labels


@pytest.mark.parametrize("exclude", [False, True])
def test_who_fails_gold_tasks_is_flagged_and_left_out_if_asked_and_no_pair_is_made_of_them(
    make_io, tmp_path, exclude
):
    io, tasks, gold, labels = workspace(make_io, tmp_path, exclude)
    metrics = run(io)
    folder = io.out("data/preferences")
    rows = {row["annotator"]: row for row in read_rows(folder / "annotators.parquet")}
    assert [name for name, row in rows.items() if row["flagged"]] == ["bad"]
    assert rows["bad"]["flagged_by"] == ["gold"], "with all others they agree"
    assert (rows["good"]["gold_items"], rows["good"]["gold_accuracy"]) == (10, 1.0)
    assert metrics["annotators"]["flagged_by"] == {"agreement": 0, "gold": 1}
    assert metrics["gold"]["tasks"] == 10
    assert metrics["gold"]["accuracy"]["value"] == pytest.approx(0.5)
    used, excluded = metrics["labels"]["used"], metrics["labels"]["excluded_flagged"]
    assert used + excluded + metrics["gold"]["labels"] == len(labels)
    assert (excluded > 0) == exclude
    known = {of["prompt_id"] for of in gold}
    for name in ("pairs", "rewrites"):
        assert not known & {row["prompt_id"] for row in read_rows(folder / f"{name}.parquet")}
    assert len(read_rows(folder / "items.parquet")) == len(tasks)


def test_gold_tasks_count_as_work_to_be_done():
    tasks = batch(4)
    gold = gold_tasks(ITEMS, tasks, 0.4, seed=1)
    assert "gold" not in progress(tasks, [])
    done = [label(of, annotator=f"a{k}") for of in tasks for k in range(of["reviews"])]
    assert done_share([*tasks, *gold], done) == 4 / (4 + len(gold))


def test_the_demos_annotators_are_mostly_right():
    gold = gold_tasks(ITEMS, batch(), 0.2, seed=3)
    rows = list(label_batch(gold, seed=5))
    values = [
        value
        for row in rows
        for value in checks(next(of for of in gold if of["task_id"] == row["task_id"]), row)
    ]
    assert sum(values) / len(values) > 0.7
