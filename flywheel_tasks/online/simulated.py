"""The demo's simulated users in an A/B test. They run as a process of their own: nothing else knows them."""

import subprocess
import sys
from pathlib import Path

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.launch import PLAN, read_plan
from flywheel_tasks.pipeline.model_files import model_folder
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.pipeline.runner import environment
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.registry_state import Arm, Experiment, RegistryError, State

# The plan as the registry has it: launch/plan.json and the users of other tests that it leaves alone.
RUNNING = "launch/running.json"


class SimulationFailedError(RuntimeError):
    """The simulation ended with an error; its output says why."""


def simulate_ab(root: Path) -> None:
    """Let simulated users talk to both arms of the workspace's running test and add what they do to the logs.

    Args:
        root: the workspace.

    Raises:
        RegistryError: the test of ``launch/plan.json`` does not run, or the registry has lost an arm's model.
        ModelFilesError: an arm's model is not in the workspace, and DVC does not bring it.
        SimulationFailedError: it failed.
    """
    location = load_settings(root / "params.yaml").logs.location
    state = registry_of(root).state()
    running = state.running(read_plan(root).generation)
    if running is None:
        raise RegistryError(f"the test of {PLAN} does not run; flywheel ab start")
    # The workspace may hold other models by now: an arm gets what the plan says, by its digest.
    control, candidate = (_model_of(root, state, running, arm) for arm in running.plan.arms)
    write_json(running.plan.model_dump(mode="json"), root / RUNNING)
    simulate(root, root / RUNNING, root / location, control=control, candidate=candidate)


def _model_of(root: Path, state: State, running: Experiment, arm: Arm) -> Path:
    """The folder of an arm's model; control stays the champion of the test's start."""
    known = (*state.candidates.values(), running.control, state.champion, state.previous)
    model = next((item for item in known if item is not None and item.digest == arm.digest), None)
    if model is None:
        raise RegistryError(
            f"arm {arm.name} talks to {arm.model} ({arm.digest}), which the registry "
            "does not know any more; flywheel ab stop"
        )
    return model_folder(root, model)


def simulate(root: Path, plan: Path, logs: Path, *, control: Path, candidate: Path) -> None:
    """Let simulated users talk to the arms of a plan.

    Args:
        root: the workspace, for the settings.
        plan: the plan's file.
        logs: folder of the raw logs that get what they do.
        control: model of that arm.
        candidate: model of that arm.

    Raises:
        SimulationFailedError: it failed.
    """
    command = [sys.executable, "-m", "flywheel_tasks.cli", "simulate", "ab", "--root", str(root)]
    command += ["--plan", str(plan), "--out", str(logs)]
    command += ["--control", str(control), "--candidate", str(candidate)]
    done = subprocess.run(
        command,
        cwd=root,
        env=environment(),
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise SimulationFailedError(f"flywheel simulate ab ended with {done.returncode}")
