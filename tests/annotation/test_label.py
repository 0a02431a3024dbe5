import copy
from collections import Counter

import pytest

from flywheel_tasks.annotation.checking import read_labels
from flywheel_tasks.annotation.label import run
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.simulation.cards import load_cards
from flywheel_tasks.storage.documents import read_jsonl, write_jsonl
from tests.annotation.tasks_of_tests import label, task


def broken(change):
    row = copy.deepcopy(label(task()))
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda row: row.update(task_id="t9"), "task_id t9 is not in the batch"),
        (lambda row: row.update(annotator=" "), "annotator is empty"),
        (lambda row: row["ranking"].pop(), "ranking must name every candidate"),
        (lambda row: row["ranking"].__setitem__(0, row["ranking"][1]), "ranking must name every candidate"),
        (lambda row: row["ranking"].__setitem__(0, "t2-c0"), "candidate_id t2-c0 is not in task t1"),
        (lambda row: row["answers"].pop("t1-c2"), "answers of t1-c2 must be exactly"),
        (lambda row: row["answers"]["t1-c2"].pop("templated"), "answers of t1-c2 must be exactly"),
        (lambda row: row["answers"]["t1-c2"].update(templated="no"), "answers.t1-c2.templated"),
        (lambda row: row["answers"].update({"x": {}}), "candidate_id x is not in task"),
        (lambda row: row.update(rewrite={"candidate_id": "x", "text": "y"}), "rewrite: candidate_id x"),
        (lambda row: row.update(rewrite={"candidate_id": "t1-c0", "text": " "}), "rewrite: text is empty"),
        (lambda row: row.update(rewrite={"candidate_id": "t1-c0", "text": "one a b "}), "text is the same"),
        (lambda row: row.pop("simulated"), "simulated"),
        (lambda row: row.update(score=1), "score"),
    ],
)
def test_each_broken_rule_names_file_line_and_rule(tmp_path, change, rule):
    path = tmp_path / "labels.jsonl"
    write_jsonl([label(task(), annotator="a0"), broken(change)], path)
    with pytest.raises(AnnotationError) as caught:
        read_labels(path, [task()])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert rule in str(caught.value)


def test_line_numbers_count_blank_lines_and_repeats_are_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_jsonl([label(task()), label(task())], path)
    path.write_text(path.read_text().replace("\n", "\n\n"))
    with pytest.raises(AnnotationError, match=r"labels\.jsonl:3: a1 labelled this task in line 1 already"):
        read_labels(path, [task()])


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(AnnotationError, match="no such file"):
        read_labels(tmp_path / "none.jsonl", [task()])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(AnnotationError, match="no labels"):
        read_labels(tmp_path / "empty.jsonl", [task()])


def test_labels_of_people_are_read_from_their_file(make_io, tmp_path):
    io = make_io("label", tmp_path, {"label.annotator": "files", "label.labels_path": "from_people.jsonl"})
    tasks = [task("t1"), task("t2", "policy")]
    write_jsonl(tasks, tmp_path / "data/annotation/batch.jsonl")
    write_jsonl([label(tasks[0]), label(tasks[0], annotator="a2")], tmp_path / "from_people.jsonl")
    metrics = run(io)
    assert (metrics["labels"], metrics["simulated"], metrics["annotators"]) == (2, 0, 2)
    assert metrics["tasks"]["policy"] == {"labelled": 0, "unlabelled": 1, "multi_review": 0}
    assert len(list(read_jsonl(io.out("data/annotation/labels.jsonl")))) == 2


def test_simulated_annotators_label_every_task(make_io, tmp_path):
    io = make_io("label", tmp_path)
    tasks = [task("t1"), task("t2", "reward_heldout"), task("t3", "policy")]
    card = load_cards()[0]
    for row in tasks:
        row["card"] |= {"name": card.name, "instructions": list(card.instructions)}
    write_jsonl(tasks, tmp_path / "data/annotation/batch.jsonl")
    metrics = run(io)
    labels = list(read_jsonl(io.out("data/annotation/labels.jsonl")))
    assert Counter(row["task_id"] for row in labels) == {"t1": 1, "t2": 3, "t3": 1}
    assert metrics["labels"] == metrics["simulated"] == 5
    assert metrics["rewrites"] > 0


def test_a_failing_annotator_process_is_an_error(make_io, tmp_path):
    io = make_io("label", tmp_path)
    write_jsonl([task("t1", "nonsense")], tmp_path / "data/annotation/batch.jsonl")
    with pytest.raises(AnnotationError, match="exit code"):
        run(io)
