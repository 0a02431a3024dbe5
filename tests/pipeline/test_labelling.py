"""A local generation whose labels come from people stops until they are enough, and then goes on to the gate."""

import pytest

from flywheel_tasks.pipeline import local, runner
from flywheel_tasks.storage.documents import write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from tests.annotation.tasks_of_tests import label, task

TASKS = [task("t1"), task("t2", "policy", reviews=2)]


@pytest.fixture
def workspace(make_workspace, tmp_path, monkeypatch):
    """A workspace with a batch; DVC is not run, what would be run is recorded."""
    root = make_workspace(tmp_path, {"label.annotator": "files", "logs.source": "files"})
    write_json({"generation": "g0001"}, root / "inputs/generation.json")
    write_jsonl(TASKS, root / "data/annotation/batch.jsonl")
    reproduced = []
    monkeypatch.setattr(runner, "reproduce", lambda root, target: reproduced.append(target))
    monkeypatch.setattr(local, "open_generation", lambda root, **options: "g0001")
    reasons = [
        {"metric": "s.x", "outcome": "block", "reason": "x is 0.71, above the maximum of 0.65: blocked."}
    ]
    verdict = {"generation": "g0001", "verdict": "block", "model_digest": "sha256:0", "reasons": reasons}
    write_json(verdict, root / "gate/verdict.json")
    return root, reproduced


def generate(root):
    return local.run_generation(root, generation="g0001", seed=None, say=lambda text: None)


def test_it_stops_before_the_labels_and_says_how_far_people_are(workspace):
    root, reproduced = workspace
    write_jsonl([label(TASKS[0])], root / "data/labels/g0001/mo.jsonl")
    outcome = generate(root)
    assert (outcome.status, reproduced) == ("labelling", ["annotation_batch"])
    assert outcome.labels is not None
    assert (outcome.labels["done"], outcome.labels["labels"]) == (0.5, 1)


def test_it_goes_on_once_they_are_enough(workspace):
    root, reproduced = workspace
    rows = [label(TASKS[0]), label(TASKS[1]), label(TASKS[1], annotator="a2")]
    write_jsonl(rows, root / "data/labels/g0001/mo.jsonl")
    assert generate(root).status == "blocked"
    assert reproduced == ["annotation_batch", "gate"]
    last = open_registry("registry", root).history()[-1]
    assert (last.kind, last.detail) == (
        "declined",
        {"generation": "g0001", "reason": "the gate blocks: x is 0.71, above the maximum of 0.65: blocked"},
    )
