"""The demo's simulated users in an A/B test. They run as a process of their own: nothing else knows them."""

import subprocess
import sys
from pathlib import Path

from flywheel_tasks.online.approval import POLICY
from flywheel_tasks.online.launch import PLAN
from flywheel_tasks.pipeline.runner import environment
from flywheel_tasks.pipeline.stage import die_with_parent
from flywheel_tasks.settings import load_settings


class SimulationFailedError(RuntimeError):
    """The simulation ended with an error; its output says why."""


def simulate_ab(root: Path) -> None:
    """Let simulated users talk to both arms of ``launch/plan.json`` and add what they do to the logs.

    Args:
        root: the workspace.

    Raises:
        SimulationFailedError: it failed.
    """
    location = load_settings(root / "params.yaml").logs.location
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "ab", "--root", str(root)]
    command += ["--plan", str(root / PLAN), "--out", str(root / location)]
    command += ["--control", str(root / "inputs/champion"), "--candidate", str(root / POLICY)]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(),
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise SimulationFailedError(f"flywheel simulate ab ended with {done.returncode}")
