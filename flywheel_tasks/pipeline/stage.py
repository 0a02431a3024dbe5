"""Runs one stage in this process: dies with its parent, one writer at a time, outputs all or none."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

from filelock import FileLock

from flywheel_tasks.pipeline import launcher
from flywheel_tasks.pipeline.graph import GraphError, Stage, load_graph
from flywheel_tasks.pipeline.stage_io import STATE, StageIO, locks_of
from flywheel_tasks.privacy.outgoing import check
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.documents import write_json


def _entry(stage: Stage):  # type: ignore[no-untyped-def]
    module, _, function = stage.entry.partition(":")
    return getattr(import_module(module), function)


@contextmanager
def one_gpu() -> Iterator[None]:
    """Within it, this process sees one GPU, the first of those it may use: for a training that it does alone.

    Where transformers sees several, it spreads a model over them by ``DataParallel``, which TRL's trainers refuse. CUDA
    looks at the variable once, when it is first asked for GPUs, so that has to be within.
    """
    name = "CUDA_VISIBLE_DEVICES"
    allowed = os.environ.get(name)
    os.environ[name] = "0" if allowed is None else allowed.split(",")[0]
    try:
        yield
    finally:
        os.environ.pop(name)
        if allowed is not None:
            os.environ[name] = allowed


def _hold_to_contracts(io: StageIO, settings: Settings) -> None:
    """Check the tables that a stage wrote against ``data_contracts``; it must opt out by ``meta.unchecked``."""
    stage = io.stage
    if not stage.checked:
        return
    from flywheel_tasks.contracts.enforce import enforce

    written = {out: io.out(out) for out in stage.checked if io.out(out).exists()}
    read = {dep: io.root / dep for dep in stage.deps if dep.startswith("data/")}
    enforce(
        written, read, io.root / "data_contracts", io.scratch() / "contracts", settings.validate_.memory_mb
    )


def _work(io: StageIO) -> None:
    metrics = _entry(io.stage)(io)
    if io.stage.metrics is not None:
        write_json(metrics, io.out(io.stage.metrics))


def _work_together(stage: Stage, root: Path) -> None:
    """A launched process's part; what it writes, the process that launched it puts in place."""
    launcher.wait_for_all()  # gives each process its own GPU; before that, all would load their models to the first
    io = StageIO(stage, root, load_settings(root / "params.yaml"), launcher.process())
    try:
        _work(io)
    except launcher.OtherProcessDone:
        return


def run_stage(name: str, root: Path) -> None:
    """Run one stage of dvc.yaml and put its outputs in place.

    Args:
        name: the stage.
        root: the workspace.

    Raises:
        GraphError: there is no such stage.
        ContractError: a table that it wrote breaks its contract; none of its outputs appears.
        LaunchError: the stage works in several processes and one failed.
        OutgoingError: its outputs hold an identifier; none of them appears.
    """
    graph = load_graph(root / "dvc.yaml")
    if name not in graph:
        raise GraphError(f"{root / 'dvc.yaml'}: no stage {name}; there are {', '.join(graph)}")
    stage = graph[name]
    if launcher.launched(name):
        return _work_together(stage, root)
    with FileLock(locks_of(root) / f"{name}.lock"):  # released by the kernel when its owner dies
        started = time.monotonic()
        settings = load_settings(root / "params.yaml")
        io = StageIO(stage, root, settings)
        config = launcher.configuration(settings.compute, name, root) if stage.distributed else None
        if config is None:
            with one_gpu() if stage.distributed else nullcontext():
                _work(io)
        else:
            io.resume_dir()  # made, and others removed, before several processes look at it
            launcher.launch(name, root, config)
        _hold_to_contracts(io, settings)
        check({out: io.out(out) for out in stage.outgoing}, settings.privacy.policy)
        io.commit()
        write_json({"seconds": time.monotonic() - started}, root / STATE / "timings" / f"{name}.json")
