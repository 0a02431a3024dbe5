"""A reward model whose training is killed and started again is the one of an uninterrupted run."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards import pairwise, pointwise
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.training import run as training
from flywheel_tasks.training.checkpoints import SealCheckpoints, last_complete_checkpoint
from tests.rewards.conftest import planted_rows

pytestmark = pytest.mark.slow

# 12 steps in two epochs, a checkpoint every 3. Both kills are in the second epoch, one while saving.
SETTINGS = {
    "pointwise_rm.epochs": 2.0,
    "pointwise_rm.batch_size": 8,
    "pointwise_rm.learning_rate": 0.01,
    "compute.precision": "float32",
}
KILLED = """
import os, signal, sys
from pathlib import Path
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards import pairwise, pointwise
from flywheel_tasks.settings import load_settings
from flywheel_tasks.training import run

root, at_step, event = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

class Kill(run.SealCheckpoints):
    def _maybe(self, name, state):
        if name == event and state.global_step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
    def on_log(self, args, state, control, **kwargs):
        self._maybe("log", state)
    def on_save(self, args, state, control, **kwargs):
        self._maybe("save", state)
        super().on_save(args, state, control, **kwargs)

run.SealCheckpoints = Kill
stage = load_graph(root / "dvc.yaml")["train_pointwise_rm"]
pointwise.run(StageIO(stage, root, load_settings(root / "params.yaml")))
"""


def test_killed_and_resumed_is_the_same_as_uninterrupted(
    reward_io: Callable[..., Any], tmp_path: Path
) -> None:
    rows = planted_rows(24, "reward_train") + planted_rows(8, "reward_heldout")
    whole_io = reward_io("train_pointwise_rm", SETTINGS, rows, tmp_path / "whole")
    whole = pointwise.run(whole_io)

    root = tmp_path / "killed"
    shutil.copytree(whole_io.root, root, symlinks=True, ignore=shutil.ignore_patterns(".flywheel"))
    io = StageIO(whole_io.stage, root, load_settings(root / "params.yaml"))
    for at_step, event in ((8, "log"), (9, "save")):
        command = [sys.executable, "-c", KILLED, str(root), str(at_step), event]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        checkpoint = last_complete_checkpoint(io.resume_dir())
        assert checkpoint is not None
        assert checkpoint.name == "checkpoint-6"

    resumed = pointwise.run(io)
    assert resumed == whole
    for out in ("models/pointwise_rm", "plots/pointwise_rm.csv"):
        assert tree_digest(io.out(out)) == tree_digest(whole_io.out(out))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pairwise_one_killed_in_its_last_step_is_the_same_too(
    precision: str, reward_io: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted_rows(8, "reward_train") + planted_rows(4, "reward_heldout")
    settings = {"pairwise_rm.batch_size": 4, "pairwise_rm.epochs": 2.0, "pairwise_rm.learning_rate": 0.01}
    settings |= {"compute.precision": precision}
    whole_io = reward_io("train_pairwise_rm", settings, rows, tmp_path / "whole")
    whole = pairwise.run(whole_io)
    assert whole["train"]["steps"] == 8

    class Killed(SealCheckpoints):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                raise KeyboardInterrupt

    io = reward_io("train_pairwise_rm", settings, rows, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(training, "SealCheckpoints", Killed)
        with pytest.raises(KeyboardInterrupt):
            pairwise.run(io)
    checkpoint = last_complete_checkpoint(io.resume_dir())
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-6"
    assert pairwise.run(io) == whole
    for out in ("models/pairwise_rm", "plots/pairwise_rm.csv"):
        assert tree_digest(io.out(out)) == tree_digest(whole_io.out(out))
