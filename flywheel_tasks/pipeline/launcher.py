"""Starts a stage's work in several processes by ``accelerate launch``, and says what a process is in such a run.

The stage's own process keeps the lock, starts the launcher, waits, and puts the outputs in place. Every process that is
launched runs the stage's function; the main one alone writes outputs, the others end once training is over.
"""

import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.settings import Compute

_STAGE = "FLYWHEEL_LAUNCHED_STAGE"
# Others wait this long at most while the main process samples or measures.
PATIENCE = timedelta(hours=6)


class LaunchError(RuntimeError):
    """A launched stage failed, or cannot be launched; the message says why."""


class OtherProcessDone(BaseException):
    """Ends the work of a process that is not the main one, once there is nothing left to do together."""


def launched(stage: str) -> bool:
    """Whether this process was launched to work on a stage."""
    return os.environ.get(_STAGE) == stage


def process() -> int:
    """This process's number; 0 is the main one."""
    return int(os.environ["RANK"]) if _STAGE in os.environ else 0


def processes() -> int:
    """How many processes work on the stage."""
    return int(os.environ["WORLD_SIZE"]) if _STAGE in os.environ else 1


def main_first() -> AbstractContextManager[None]:
    """Within it, the main process goes first and the others wait: for files that one of them writes."""
    if processes() == 1:
        return nullcontext()
    found: AbstractContextManager[None] = _together().main_process_first()
    return found


def wait_for_all() -> None:
    """Return when every process is here."""
    if processes() > 1:
        _together().wait_for_everyone()


def _together() -> Any:
    """What the processes are to one another. On CPUs it must be told, or it takes each for the only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def configuration(compute: Compute, stage: str, root: Path) -> Path | None:
    """The file for ``accelerate launch`` that the setting ``compute.launcher`` names for a stage.

    Raises:
        LaunchError: the file is missing.
    """
    named: Any = compute.launcher
    chosen = named.get(stage) if isinstance(named, dict) else named
    if chosen is None:
        return None
    path = root / chosen
    if not path.is_file():
        raise LaunchError(f"compute.launcher: {path} is no file (for stage {stage})")
    return path


def command(stage: str, root: Path, config: Path) -> list[str]:
    """The command line that launches a stage."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launcher, "-m", "flywheel_tasks.cli", "stage", stage, "--root", str(root)]


def launch(stage: str, root: Path, config: Path) -> None:
    """Run a stage's function in the processes that a configuration asks for.

    Args:
        stage: its name.
        root: the workspace.
        config: the file for ``accelerate launch``.

    Raises:
        LaunchError: a process failed; its own message is above.
    """
    done = subprocess.run(
        command(stage, root, config),
        env={**os.environ, _STAGE: stage},
        cwd=root,
        check=False,
        preexec_fn=die_with_parent,  # no threads are started before this call
    )
    if done.returncode:
        raise LaunchError(f"stage {stage}: accelerate launch ended with {done.returncode} ({config})")
