"""Runs one stage in this process: dies with its parent, one writer at a time, outputs all or none."""

import ctypes
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from filelock import FileLock

from flywheel_tasks.pipeline.graph import GraphError, Stage, load_graph
from flywheel_tasks.pipeline.stage_io import STATE, StageIO
from flywheel_tasks.privacy.outgoing import check
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import write_json

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux).

    DVC starts a stage again as soon as its own dead lock is noticed; an orphan would then be a second writer.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _entry(stage: Stage):  # type: ignore[no-untyped-def]
    module, _, function = stage.entry.partition(":")
    return getattr(import_module(module), function)


def run_stage(name: str, root: Path) -> None:
    """Run one stage of dvc.yaml and put its outputs in place.

    Args:
        name: the stage.
        root: the workspace.

    Raises:
        GraphError: there is no such stage.
        OutgoingError: its outputs hold an identifier; none of them appears.
    """
    graph = load_graph(root / "dvc.yaml")
    if name not in graph:
        raise GraphError(f"{root / 'dvc.yaml'}: no stage {name}; there are {', '.join(graph)}")
    stage = graph[name]
    locks = root / STATE / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):  # released by the kernel when its owner dies
        started = time.monotonic()
        settings = load_settings(root / "params.yaml")
        io = StageIO(stage, root, settings)
        metrics = _entry(stage)(io)
        if stage.metrics is not None:
            write_json(metrics, io.out(stage.metrics))
        check({out: io.out(out) for out in stage.outgoing}, settings.privacy.policy)
        io.commit()
        write_json({"seconds": time.monotonic() - started}, root / STATE / "timings" / f"{name}.json")
