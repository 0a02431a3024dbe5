"""A thin runner around DVC: the only place that calls it."""

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from flywheel_tasks.pipeline.graph import ancestors, load_graph
from flywheel_tasks.pipeline.leftovers import clear_leftovers
from flywheel_tasks.pipeline.process import die_with_parent

logger = logging.getLogger(__name__)

_TAIL_LINES = 40


class StageFailedError(RuntimeError):
    """A DVC command failed; the message has its last lines, or its error where the lines were shown."""


def environment() -> dict[str, str]:
    """This process's environment with this interpreter's scripts (``dvc``, ``flywheel``) first on the path."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Bars of single files and deprecations of parts we pin say nothing to a reader of the log.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }


def _failure(arguments: Iterable[str], code: int, tail: Iterable[str], *, shown: bool) -> str:
    """Why a command failed: its last lines, or of an output that was shown already the one that says "error: "."""
    lines = list(tail)
    told = [line for line in lines if line.startswith("error: ")][-1:] if shown else lines
    about = f"dvc {' '.join(arguments)} ended with {code}"
    return "\n".join([f"{about}:", *told]) if told else f"{about}, its output is above"


def dvc(root: Path, *arguments: str, quiet: bool = False) -> str:
    """Run one DVC command in the workspace, its output shown as it comes.

    The command dies with this process, and so does the stage below it.

    Args:
        root: the workspace.
        arguments: words after ``dvc``; ``--wait-for-lock`` is added where DVC knows it.
        quiet: show nothing.

    Returns:
        the last lines of its output.

    Raises:
        StageFailedError: it ended with an error.
    """
    clear_leftovers(root)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,  # no threads are started before this call
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            if not quiet:
                sys.stdout.write(line)
                sys.stdout.flush()
    if process.returncode:
        raise StageFailedError(_failure(arguments, process.returncode, tail, shown=not quiet))
    return "\n".join(tail)


def push(root: Path, targets: Iterable[str]) -> None:
    """Push the outputs of stages, and the run cache, to the DVC remote."""
    dvc(root, "push", "--run-cache", *targets)


def run(root: Path, stage: str, *, force: bool = False, push_outputs: bool = True) -> None:
    """Run one stage through DVC and push what it made.

    On a worker that does not have the stage's inputs, they are restored from the remote first (by DVC's run cache).

    Args:
        root: the workspace.
        stage: the stage's name.
        force: run it even if nothing changed.
        push_outputs: push to the DVC remote afterwards.

    Raises:
        StageFailedError: DVC or the stage failed.
    """
    graph = load_graph(root / "dvc.yaml")
    missing = [dep for dep in graph[stage].deps if not (root / dep).exists()]
    if missing:
        logger.warning("inputs of %s are not here (%s); restoring them", stage, ", ".join(missing))
        for parent in ancestors(graph, stage):
            dvc(root, "repro", "--single-item", "--pull", parent)
    dvc(root, "repro", "--single-item", *(["--force"] if force else []), stage)
    if push_outputs:
        push(root, [stage])


def reproduce(root: Path, target: str) -> None:
    """``dvc repro`` of a stage and all that it needs."""
    dvc(root, "repro", target)
