"""One small generation, made once for all tests of this folder, and killed many times on its way."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flywheel_tasks.pipeline.local import Outcome, run_generation
from tests.conftest import build_workspace
from tests.generation.small import make_repository, metrics_of, small_settings, stages_run

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


@dataclass(frozen=True)
class Launched:
    """A workspace after its generation, and its metrics files as they were then."""

    root: Path
    outcome: Outcome
    metrics: dict[str, str]


@pytest.fixture(scope="session")
def launched(tmp_path_factory, tiny_models):
    """A workspace after one whole generation that was killed in many of its stages and went on each time."""
    root = tmp_path_factory.mktemp("generation") / "workspace"
    make_repository(root, build_workspace, small_settings(tiny_models))
    for stage in KILLED:
        done = stages_run(root)
        _kill_in(root, stage)
        after = stages_run(root)
        assert {name: after[name] for name in done} == done, "a finished stage was run again"
    outcome = run_generation(root, generation=None, seed=None, say=print)
    return Launched(root, outcome, metrics_of(root))
