"""One generation through dvc repro on tiny models, and what must hold of it."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flywheel_tasks.pipeline import generation as generations
from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.local import run_generation
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import open_registry
from tests.conftest import build_workspace
from tests.generation.small import CLOSED_RULES, make_repository, small_settings

pytestmark = pytest.mark.slow


def _metrics(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((root / "metrics").glob("*.json"))}


def _stages_run(root: Path) -> dict[str, float]:
    """When each stage's own work last ended."""
    return {path.stem: path.stat().st_mtime for path in (root / ".flywheel/timings").glob("*.json")}


# Killed once each; the trainers after their first checkpoint, so that the next run must resume.
KILLED = ("base_model", "ingest", "annotation_batch", "train_pointwise_rm", "sft", "rl", "evaluate")


def _start(root: Path) -> subprocess.Popen:
    code = "import sys; from pathlib import Path; from flywheel_tasks.pipeline.local import run_generation;"
    code += "run_generation(Path(sys.argv[1]), generation=None, seed=None, say=print)"
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.DEVNULL)


def _kill_in(root: Path, stage: str) -> None:
    """Start the generation and kill it by SIGKILL in a stage."""
    process = _start(root)
    lock = root / ".flywheel/locks" / f"{stage}.lock"
    finished = root / ".flywheel/timings" / f"{stage}.json"
    trains = stage in ("train_pointwise_rm", "sft", "rl")
    while not (list((root / ".flywheel/resume" / stage).glob("*/checkpoint-*")) if trains else lock.exists()):
        assert process.poll() is None, f"it ended before {stage} could be killed"
        assert not finished.exists(), f"{stage} ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not finished.exists()


@pytest.fixture(scope="module")
def launched(tmp_path_factory, tiny_models):
    """A workspace after one whole generation that was killed in many of its stages and went on each time."""
    root = tmp_path_factory.mktemp("generation") / "workspace"
    make_repository(root, build_workspace, small_settings(tiny_models))
    for stage in KILLED:
        done = _stages_run(root)
        _kill_in(root, stage)
        after = _stages_run(root)
        assert {name: after[name] for name in done} == done, "a finished stage was run again"
    outcome = run_generation(root, generation=None, seed=None, say=print)
    return root, outcome


def test_logs_become_a_launched_candidate(launched):
    root, outcome = launched
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
    root, _ = launched
    ingest = read_json(root / "metrics/ingest.json")
    accepted, quarantined = (
        value if isinstance(value, int) else sum(v for k, v in value.items() if k != "total")
        for value in (ingest["accepted"], ingest["quarantined"])
    )
    assert accepted + quarantined + ingest["duplicates"] == ingest["read"] > 0


def test_training_moved_every_model(launched):
    from safetensors.torch import load_file

    root, _ = launched
    folders = ["inputs/champion", "models/policy_sft", "models/policy_dpo", "models/policy"]
    weights = [load_file(root / folder / "model.safetensors") for folder in folders]
    for before, after in itertools.pairwise(weights):
        assert any(not before[name].equal(after[name]) for name in before)


def test_again_runs_nothing(launched):
    root, _ = launched
    before = _stages_run(root)
    started = time.monotonic()
    outcome = run_generation(root, generation=None, seed=None, say=print)
    assert outcome.status == "launched"
    assert _stages_run(root) == before
    assert len(open_registry("registry", root).history()) == 3
    assert time.monotonic() - started < 60


def test_killed_or_not_the_same_seed_gives_the_same_figures(launched, tmp_path):
    root, _ = launched
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("cache", ".flywheel", "registry", "tmp"))
    before = _metrics(copy)
    for folder in ("metrics", "models", "plots", "gate", "launch"):
        shutil.rmtree(copy / folder)
    for item in (copy / "data").iterdir():
        if item.name != "logs":
            shutil.rmtree(item)
    (copy / "dvc.lock").unlink()
    runner.reproduce(copy, "base_model")
    shutil.rmtree(copy / "inputs/champion", ignore_errors=True)
    shutil.copytree(copy / "models/base", copy / "inputs/champion")
    runner.reproduce(copy, "gate")
    after = _metrics(copy)
    before.pop("launch.json")
    assert after == before


def test_a_changed_setting_of_rl_runs_rl_and_what_follows(launched):
    root, _ = launched
    before = _stages_run(root)
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["rl"]["length_penalty"] = 0.5
    original = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    try:
        runner.reproduce(root, "gate")
    finally:
        (root / "params.yaml").write_text(original)
    changed = {name for name, when in _stages_run(root).items() if when != before[name]}
    assert changed == {"rl", "evaluate", "gate"}
    runner.reproduce(root, "gate")
    again = {name for name, when in _stages_run(root).items() if when != before[name]}
    assert again == changed, "the run cache restores the first result without running anything"


def test_a_fresh_clone_restores_everything_and_runs_nothing(launched, tmp_path):
    root, _ = launched
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
    root, _ = launched
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["gate"]["rules"] = CLOSED_RULES
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    outcome = run_generation(root, generation="g0002", seed=None, say=print)
    assert outcome.status == "blocked"
    assert [r["metric"] for r in outcome.verdict["reasons"] if not r["passed"]]
    assert "g0002" not in open_registry("registry", root).state().experiments
