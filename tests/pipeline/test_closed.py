"""A launched generation is not made again, whatever has changed; and goes on where nothing has."""

import json

import pytest

from flywheel_tasks.pipeline import closed, local, runner
from flywheel_tasks.pipeline.generation_ids import GenerationError
from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.storage.registry import open_registry
from tests.dags.small import OVERRIDES, make_small
from tests.generation.small import stages_run


@pytest.fixture
def workspace(tmp_path, make_workspace, monkeypatch):
    """A workspace whose settings are those of dvc.lock; what DVC says of it is told by the test."""
    root, said = make_workspace(tmp_path), {}
    monkeypatch.setattr(runner, "dvc", lambda *_, **__: f"WARNING: of DVC\n{json.dumps(said)}")
    settings = load_yaml((root / "params.yaml").read_text())
    lock = {
        "stages": {
            "rl": {"cmd": "x", "params": {"params.yaml": {name: settings[name] for name in ("rl", "seed")}}}
        }
    }
    (root / "dvc.lock").write_text(json.dumps(lock))
    return root, said


def test_only_what_a_user_changes_counts_and_settings_are_named_one_by_one(workspace):
    root, said = workspace
    assert closed.changes(root) == []
    text = (root / "params.yaml").read_text().replace("learning_rate: 0.001", "learning_rate: 0.01")
    (root / "params.yaml").write_text(text.replace("stop: null", "stop: 1.0", 1))
    said |= {
        "rl": [
            {
                "changed deps": {
                    "params.yaml": {"rl": "modified"},
                    "data/split": "modified",
                    "models/policy_dpo": "deleted",
                    "flywheel_tasks/policy/rl.py": "modified",
                }
            },
            {"changed outs": {"models/policy": "deleted"}},
        ],
        "gate": [
            {
                "changed deps": {
                    "gate_rules.yaml": "modified",
                    "inputs/users.json": "deleted",
                    "plots/rl.csv": "new",
                }
            },
            "changed command",
        ],
        "launch": [{"changed outs": {"launch/plan.json": "not in cache"}}],
    }
    assert closed.changes(root) == [
        "rl.learning_rate",
        "rl.watch.kl.stop",
        "dvc.yaml (stage gate)",
        "flywheel_tasks/policy/rl.py",
        "gate_rules.yaml",
        "inputs/users.json",
    ]


def test_a_small_number_is_the_same_however_it_is_written(workspace):
    root, said = workspace
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: 8.0e-5"))
    locked = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(locked.replace('"learning_rate": 0.001', '"learning_rate": 8e-05'))
    said |= {"rl": [{"changed deps": {"params.yaml": {"rl": "modified"}}}]}
    assert closed.changes(root) == []


@pytest.mark.slow
def test_a_launched_generation_goes_on_as_it_was_launched_or_not_at_all(
    tmp_path, make_workspace, monkeypatch
):
    """A real DVC, stages that take no time."""
    root = make_small(make_workspace(tmp_path / "work", OVERRIDES | {"approval.local": "policy"}))
    monkeypatch.setenv("PYTHONPATH", str(root))
    params, wish = root / "params.yaml", root / "wish.txt"

    def generate():
        return local.run_generation(root, generation=None, seed=None, say=print).status

    assert generate() == "launched"
    before, changes = stages_run(root), len(open_registry("registry", root).history())
    assert generate() == "launched"
    text = params.read_text()
    params.write_text(text.replace("seed: 20261102", "seed: 3"))
    wish.write_text("pass, please\n")
    with pytest.raises(
        GenerationError, match=r"g0001 is launched and closed, .* since: seed, wish\.txt\. flywheel"
    ):
        generate()
    params.write_text(text)
    wish.write_text("pass\n")
    assert generate() == "launched"
    assert stages_run(root) == before, "no stage ran again"
    registry = open_registry("registry", root)
    assert len(registry.history()) == changes
    registry.rollback("g0001", "for the test", by="ada")
    with pytest.raises(
        GenerationError, match=r"g0001 was launched, and its test is over \(rolled_back\): flywheel"
    ):
        generate()
    assert local.run_generation(root, generation="g0002", seed=None, say=print).status == "launched"
