"""One generation through dvc repro on tiny models, and what must hold of it."""

import itertools
import shutil
import subprocess

import pytest
import yaml

from flywheel_tasks.online.model_card import make_card
from flywheel_tasks.pipeline import generation as generations
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.local import run_generation
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import open_registry
from tests.generation.small import CLOSED_RULES, metrics_of, stages_run, write_gate_rules

pytestmark = pytest.mark.slow


def test_logs_become_a_launched_candidate(launched):
    root, outcome = launched.root, launched.outcome
    assert outcome.status == "launched"
    state = open_registry("registry", root).state()
    assert state.champion.generation == "base"
    assert state.candidate.generation == "g0001"
    assert state.running().plan.experiment == outcome.experiment
    assert state.approval("launch", "g0001").by.startswith("policy")
    for stage in load_graph(root / "dvc.yaml").values():
        for out in stage.outs:
            assert (root / out).exists(), out


def test_what_was_read_is_accounted_for(launched):
    root = launched.root
    ingest = read_json(root / "metrics/ingest.json")
    accepted, quarantined = (
        value if isinstance(value, int) else sum(v for k, v in value.items() if k != "total")
        for value in (ingest["accepted"], ingest["quarantined"])
    )
    assert accepted + quarantined + ingest["duplicates"] == ingest["read"] > 0


def test_training_moved_every_model(launched):
    from safetensors.torch import load_file

    root = launched.root
    folders = ["inputs/champion", "models/policy_sft", "models/policy_dpo", "models/policy"]
    weights = [load_file(root / folder / "model.safetensors") for folder in folders]
    moved = [
        any(not before[name].equal(after[name]) for name in before)
        for before, after in itertools.pairwise(weights)
    ]
    # RL may hand over the policy that it began with, where that one is nearest to the target win rate; and that one may
    # have been drawn back towards the champion.
    checkpoint = read_json(root / "metrics/rl.json")["checkpoint"]
    assert moved == [True, True, checkpoint["step"] > 0 or checkpoint["start_share"] < 1]


def test_again_runs_nothing(launched):
    root = launched.root
    before = stages_run(root)
    outcome = run_generation(root, generation=None, seed=None, say=print)
    assert outcome.status == "launched"
    assert stages_run(root) == before
    assert len(open_registry("registry", root).history()) == 3


def test_a_changed_setting_of_rl_runs_rl_and_what_follows(launched):
    root = launched.root
    before, policy = stages_run(root), tree_digest(root / "models/policy")
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["rl"]["learning_rate"] = 0.01
    original = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    try:
        runner.reproduce(root, "gate")
    finally:
        (root / "params.yaml").write_text(original)
    after, metrics = stages_run(root), metrics_of(root)
    # The policy it began with may be handed over both times; then there is nothing to evaluate again.
    evaluated = {"evaluate"} if tree_digest(root / "models/policy") != policy else set()
    runner.reproduce(root, "gate")
    assert stages_run(root) == after, "the run cache restores the first result without running anything"
    assert metrics_of(root) == launched.metrics != metrics
    assert {name for name, when in after.items() if when != before[name]} == {
        "rl",
        "style",
        "gate",
    } | evaluated


def test_a_fresh_clone_restores_everything_and_runs_nothing(launched, tmp_path):
    root = launched.root
    runner.dvc(root, "push", "--run-cache", "-q")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    shutil.copytree(root / "registry", clone / "registry")
    shutil.copy(root / ".dvc/config", clone / ".dvc/config")
    generations.sync(clone, "g0001")
    runner.dvc(clone, "repro", "--pull", "gate")
    assert not (clone / ".flywheel/timings").exists()
    assert (clone / "gate/verdict.json").read_bytes() == (root / "gate/verdict.json").read_bytes()


def test_a_blocked_candidate_is_not_launched(launched):
    """Last: it changes the workspace's rules."""
    root = launched.root
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["split"]["reuse_evaluation"] = True  # with the same prompts: what they make is there already
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    write_gate_rules(root, CLOSED_RULES)
    generations.open_generation(root, generation="g0002")  # of the logs of g0001: no week is simulated for it
    outcome = run_generation(root, generation="g0002", seed=None, say=print)
    assert outcome.status == "blocked"
    assert [r["metric"] for r in outcome.verdict["reasons"] if r["outcome"] == "block"]
    registry = open_registry("registry", root)
    assert "g0002" not in registry.state().experiments
    last = registry.history()[-1]
    assert (last.kind, last.by, last.detail["generation"]) == (
        "declined",
        "policy: a gate that blocks",
        "g0002",
    )
    assert "## Gate: block" in make_card(registry, "g0002")
