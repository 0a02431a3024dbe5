import copy
from collections import Counter

import pytest

from flywheel_tasks.annotation.delivery import pin_labels
from flywheel_tasks.annotation.label import run
from flywheel_tasks.annotation.progress import LabelsNotReadyError
from flywheel_tasks.annotation.reading import message_of, read_files
from flywheel_tasks.annotation.tasks import AnnotationError, short_id
from flywheel_tasks.privacy.outgoing import scan
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
        (lambda row: row["answers"]["t1-c2"].update(templated=1), "answers.t1-c2.templated"),
        (lambda row: row["ranking"].__setitem__(0, ["t1-c0", "t1-c1"]), "ranking must name every candidate"),
        (lambda row: row.update(violations={"t1-c0": []}), "only a steerability task has violations"),
        (
            lambda row: row.update(rewrite={"candidate_id": "t1-c0", "text": "y"}, rewrite_skipped=True),
            "rewrite_skipped",
        ),
        (lambda row: row["answers"].update({"x": {}}), "candidate_id x is not in task"),
        (lambda row: row.update(rewrite={"candidate_id": "x", "text": "y"}), "rewrite: candidate_id x"),
        (lambda row: row.update(rewrite={"candidate_id": "t1-c0", "text": " "}), "rewrite: text is empty"),
        (lambda row: row.update(rewrite={"candidate_id": "t1-c0", "text": "one a b "}), "text is the same"),
        (
            lambda row: row.update(
                rewrite={"candidate_id": "t1-c0", "text": "Look! <tool_call>{}</tool_call>"}
            ),
            "rewrite: a tool call must be the whole reply",
        ),
        (lambda row: row.pop("simulated"), "simulated"),
        (lambda row: row.update(score=1), "score"),
    ],
)
def test_each_broken_rule_names_file_line_and_rule(tmp_path, change, rule):
    path = tmp_path / "labels.jsonl"
    write_jsonl([label(task(), annotator="a0"), broken(change)], path)
    reading = read_files([("labels.jsonl", path)], [task()])
    assert len(reading.labels) == len(reading.quarantined) == 1
    row = reading.quarantined[0]
    assert message_of(row).startswith("labels.jsonl:2: ")
    assert rule in row["detail"]
    assert row["rule"]


STEERS = task(kind="steerability", texts=("one a b", "two a b"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda row: row["violations"].pop("t1-c1"), "violations of t1-c1 are missing"),
        (
            lambda row: row["violations"].update({"t1-c1": ["instruction-2"]}),
            "instruction-2 is no rule of the card",
        ),
        (lambda row: row["violations"].update({"t1-c1": ["trait-1"]}), "contradict its answer violates_card"),
    ],
)
def test_rules_of_steerability_labels(tmp_path, change, rule):
    path = tmp_path / "labels.jsonl"
    row = copy.deepcopy(label(STEERS))
    change(row)
    write_jsonl([row], path)
    assert rule in read_files([("f", path)], [STEERS]).quarantined[0]["detail"]


@pytest.mark.parametrize(
    ("of", "changes", "sound"),
    [
        (STEERS, {"faults": (0,)}, True),
        (STEERS, {"faults": (0, 1)}, False),
        (STEERS, {"faults": (0, 1), "rewrite": (0, "better")}, True),
        (task(kind="rewrite", texts=("bad",)), {}, False),
        (task(kind="rewrite", texts=("bad",)), {"rewrite": (0, "better")}, True),
    ],
)
def test_a_rewrite_is_due_where_the_task_asks_for_one(tmp_path, of, changes, sound):
    path = tmp_path / "labels.jsonl"
    write_jsonl(
        [label(of, **changes), label(of, annotator="a2", **changes) | {"rewrite_skipped": True}], path
    )
    reading = read_files([("f", path)], [of])
    assert (len(reading.labels) >= 1) == (sound or not changes.get("rewrite"))
    rules = [row["rule"] for row in reading.quarantined if row["annotator"] == "a1"]
    assert rules == ([] if sound else ["rewrite_missing"])


def test_answers_of_the_teams_own_questions(tmp_path):
    of = task(extra=[{"name": "tone", "text": "Tone?", "choices": ["warm", "cold"]}], texts=("a", "b"))
    path = tmp_path / "labels.jsonl"
    rows = [label(of), label(of, annotator="a2")]
    rows[1]["answers"]["t1-c1"]["tone"] = "hot"
    write_jsonl(rows, path)
    reading = read_files([("f", path)], [of])
    assert [row["rule"] for row in reading.quarantined] == ["unknown_choice"]
    assert reading.labels[0]["answers"]["t1-c0"]["tone"] == "warm"


def test_line_numbers_count_blank_lines_and_repeats_are_quarantined(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_jsonl([label(task()), label(task())], path)
    path.write_text(path.read_text().replace("\n", "\n\n"))
    reading = read_files([("labels.jsonl", path)], [task()])
    assert len(reading.labels) == 1
    assert message_of(reading.quarantined[0]) == "labels.jsonl:3: a1 labelled this task in line 1 already"


def test_a_corrected_label_counts_and_the_broken_one_before_it_is_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_jsonl([broken(lambda row: row["ranking"].pop()), label(task()), label(task())], path)
    reading = read_files([("labels.jsonl", path)], [task()])
    assert reading.labels == [label(task())]
    assert [(row["place"], row["rule"]) for row in reading.quarantined] == [
        ("line 1", "ranking"),
        ("line 3", "duplicate"),
    ]


def test_an_annotator_named_by_an_address_has_an_id_that_does_not_tell_it(make_io, tmp_path):
    tasks = [task("t1", reviews=2), task("t2")]
    rows = [
        label(tasks[0], annotator="mo@example.org"),
        label(tasks[0], annotator="Mo@Example.org "),
        label(tasks[1], annotator="mo@example.org"),
        label(tasks[0], annotator="tu"),
        label(task("t9"), annotator="tu@example.org"),
    ]
    settings = {"label.max_quarantine_share": 0.5}
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": rows}, settings)
    metrics = run(io)
    assert (metrics["annotators"], metrics["quarantined"]) == (2, {"duplicate": 1, "unknown_task": 1})
    out = io.out("data/annotation/labels.jsonl")
    mo = f"a-{short_id('mo@example.org')}"
    assert [row["annotator"] for row in read_jsonl(out)] == [mo, mo, "tu"]
    assert scan(out) == scan(io.out("data/annotation/quarantine.jsonl")) == []


FILES = {"label.annotator": "files", "label.location": "people/{generation}", "label.min_done": 0.5}


def delivered(make_io, root, tasks, labels, overrides=None):
    """The stage's StageIO with labels delivered and pinned."""
    io = make_io("label", root, {**FILES, **(overrides or {})})
    write_jsonl(tasks, root / "data/annotation/batch.jsonl")
    for name, rows in labels.items():
        write_jsonl(rows, root / "people/g0001" / name)
    pin_labels(io.settings.label, "g0001", root)
    return io


def test_labels_of_people_are_read_from_their_files(make_io, tmp_path):
    tasks = [task("t1", reviews=2), task("t2", "policy")]
    files = {"mo.jsonl": [label(tasks[0])], "tu.jsonl": [label(tasks[0], annotator="a2")], "notes.txt": []}
    io = delivered(make_io, tmp_path, tasks, files)
    metrics = run(io)
    assert (metrics["labels"], metrics["simulated"], metrics["annotators"]) == (2, 0, 2)
    assert metrics["tasks"]["policy"] == {"labelled": 0, "unlabelled": 1, "multi_review": 0, "done": 0}
    assert metrics["tasks"]["reward_train"]["done"] == 1
    assert len(list(read_jsonl(io.out("data/annotation/labels.jsonl")))) == 2


def test_while_labels_are_missing_the_message_says_how_to_get_them(make_io, tmp_path):
    tasks = [task("t1"), task("t2", "policy"), task("t3", "policy")]
    io = delivered(make_io, tmp_path, tasks, {})
    with pytest.raises(LabelsNotReadyError, match=r"0 of 3 tasks .*flywheel annotation export.*people/g0001"):
        run(io)
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": [label(tasks[0])]})
    with pytest.raises(LabelsNotReadyError, match="1 of 3 tasks"):
        run(io)


def test_new_labels_are_seen_once_they_are_pinned_and_changed_ones_are_refused(make_io, tmp_path):
    tasks = [task("t1", reviews=2)]
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": [label(tasks[0])]}, {"label.min_done": 0.0})
    before = (tmp_path / "inputs/labels.json").read_bytes()
    write_jsonl([label(tasks[0], (3, 2, 1, 0))], tmp_path / "people/g0001/mo.jsonl")
    with pytest.raises(AnnotationError, match=r"people/g0001/mo\.jsonl: is sha256.*flywheel annotation pin"):
        run(io)
    pin_labels(io.settings.label, "g0001", tmp_path)
    assert (tmp_path / "inputs/labels.json").read_bytes() != before
    run(io)
    (tmp_path / "people/g0001/mo.jsonl").unlink()
    with pytest.raises(AnnotationError, match="is gone"):
        run(io)


def test_broken_labels_are_quarantined_up_to_a_share(make_io, tmp_path):
    tasks = [task("t1")]
    rows = [label(tasks[0], annotator=f"a{k}") for k in range(9)] + [label(task("t9"))]
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": rows}, {"label.max_quarantine_share": 0.1})
    metrics = run(io)
    assert (metrics["read"], metrics["labels"], metrics["quarantined"]) == (10, 9, {"unknown_task": 1})
    kept = list(read_jsonl(io.out("data/annotation/quarantine.jsonl")))
    assert kept[0]["file"] == "people/g0001/mo.jsonl"
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": rows}, {"label.max_quarantine_share": 0.05})
    with pytest.raises(AnnotationError, match=r"1 of 10 labels break a rule.*mo\.jsonl:10: task_id t9"):
        run(io)


@pytest.mark.parametrize("said", ["Text me: 07911 123456", "My ssn is 123 45 6789", "a@example.com"])
def test_a_rewrite_with_an_identifier_is_put_aside_and_an_earlier_label_counts(make_io, tmp_path, said):
    tasks = [task("t1", texts=("bad",), kind="rewrite", reviews=2)]
    rows = [
        label(tasks[0], rewrite=(0, said)),
        label(tasks[0], rewrite=(0, "We won 21-14.")),
        label(tasks[0], annotator="a2", rewrite=(0, "better")),
    ]
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": rows}, {"label.max_quarantine_share": 0.5})
    metrics = run(io)
    assert (metrics["labels"], metrics["quarantined"]) == (2, {"identifier": 1})
    aside = list(read_jsonl(io.out("data/annotation/quarantine.jsonl")))
    assert (aside[0]["place"], aside[0]["rule"]) == ("line 1", "identifier")
    assert said not in str(aside)
    assert {row["rewrite"]["text"] for row in read_jsonl(io.out("data/annotation/labels.jsonl"))} == {
        "We won 21-14.",
        "better",
    }


def test_what_else_a_label_says_counts_without_its_rewrite(make_io, tmp_path):
    tasks = [task("t1", texts=("bad", "good"), reviews=2)]
    rows = [
        label(tasks[0], order=(1, 0), rewrite=(1, "Call 07911 123456")),
        label(tasks[0], annotator="a2", order=(1, 0), rewrite=(1, "better")),
    ]
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": rows}, {"label.max_quarantine_share": 0.0})
    metrics = run(io)
    assert (metrics["read"], metrics["labels"], metrics["rewrites"]) == (2, 2, 1)
    assert metrics["quarantined"] == {"identifier": 1}
    kept = list(read_jsonl(io.out("data/annotation/labels.jsonl")))
    assert all(row["ranking"] for row in kept)
    assert "07911" not in str(kept)


def test_simulated_labels_are_never_taken_for_those_of_people(make_io, tmp_path):
    tasks = [task("t1")]
    io = delivered(make_io, tmp_path, tasks, {"mo.jsonl": [label(tasks[0]) | {"simulated": True}]})
    with pytest.raises(AnnotationError, match="labels that say simulated"):
        run(io)


def test_labels_pinned_for_another_annotator_are_refused(make_io, tmp_path):
    io = delivered(make_io, tmp_path, [task()], {"mo.jsonl": [label(task())]})
    pin_labels(io.settings.label.model_copy(update={"annotator": "simulated"}), "g0001", tmp_path)
    with pytest.raises(AnnotationError, match=r"pinned for label\.annotator simulated"):
        run(io)


def test_labels_in_a_bucket(make_io, tmp_path, s3_server):
    s3_server.create_bucket(Bucket="people")
    tasks = [task("t1")]
    write_jsonl([label(tasks[0])], tmp_path / "mo.jsonl")
    s3_server.upload_file(str(tmp_path / "mo.jsonl"), "people", "labels/g0001/mo.jsonl")
    io = delivered(make_io, tmp_path, tasks, {}, {"label.location": "s3://people/labels/{generation}"})
    assert run(io)["labels"] == 1


def test_one_file_can_be_the_location(make_io, tmp_path):
    tasks = [task("t1")]
    write_jsonl([label(tasks[0])], tmp_path / "mine.jsonl")
    write_jsonl([label(tasks[0])], tmp_path / "other.jsonl")
    io = delivered(make_io, tmp_path, tasks, {}, {"label.location": "mine.jsonl"})
    assert run(io)["labels"] == 1


def test_simulated_annotators_label_every_task(make_io, tmp_path):
    io = make_io("label", tmp_path)
    card = load_cards()[0]
    card = {
        "card_id": card.card_id,
        "name": card.name,
        "traits": ["dry"],
        "instructions": list(card.instructions),
    }
    repeats = [{"name": "repeats", "text": "Repeats?", "choices": None}]
    tasks = [
        task("t1", card=card, extra=repeats),
        task("t2", "reward_heldout", card=card, reviews=3),
        task("t3", "policy", card=card, kind="steerability"),
        task("t4", "policy", card=card, kind="rewrite", texts=("As an AI I cannot help.",)),
    ]
    tasks[-1]["history"] = [{"role": "user", "content": "Do you like storms?"}]  # a line that they can answer
    write_jsonl(tasks, tmp_path / "data/annotation/batch.jsonl")
    metrics = run(io)
    labels = list(read_jsonl(io.out("data/annotation/labels.jsonl")))
    assert Counter(row["task_id"] for row in labels) == {"t1": 1, "t2": 3, "t3": 1, "t4": 1}
    assert metrics["labels"] == metrics["simulated"] == metrics["read"] == 6
    assert metrics["rewrites"] == 1
    assert list(read_jsonl(io.out("data/annotation/quarantine.jsonl"))) == []


def test_a_failing_annotator_process_is_an_error(make_io, tmp_path):
    io = make_io("label", tmp_path)
    write_jsonl([task("t1", kind="nonsense")], tmp_path / "data/annotation/batch.jsonl")
    with pytest.raises(AnnotationError, match="exit code"):
        run(io)
