"""A thin runner around DVC: the only place that calls it."""

import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from flywheel_tasks.pipeline import dvc_locks, lineage
from flywheel_tasks.pipeline.allocator import large_pages
from flywheel_tasks.pipeline.graph import Stage, ancestors, load_graph
from flywheel_tasks.pipeline.leftovers import clear_leftovers
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.pipeline.stage_io import STATE
from flywheel_tasks.storage.atomic import atomic_path

logger = logging.getLogger(__name__)

_TAIL_LINES = 40
_PUSH_PAUSES = (5.0, 20.0, 60.0)  # seconds; a stage that took hours is not given up for one lost connection


class StageFailedError(RuntimeError):
    """A DVC command failed; the message has its last lines, or its error where the lines were shown.

    Args:
        message: for people.
        output: the command's last lines.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class LostDataError(StageFailedError):
    """DVC has files neither here nor in its remote. All else that goes wrong may go right another time."""


class OtherDataError(StageFailedError):
    """What lies in this workspace is not what the run made elsewhere, and cannot be brought."""


def environment() -> dict[str, str]:
    """This process's environment for one that computes, with this interpreter's scripts first on the path."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "GLIBC_TUNABLES": large_pages(os.environ.get("GLIBC_TUNABLES", "")),
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
    with (
        dvc_locks.at_work(root),
        subprocess.Popen(
            command,
            cwd=root,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent,  # no threads are started before this call
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            if not quiet:
                sys.stdout.write(line)
                sys.stdout.flush()
    if process.returncode:
        message = _failure(arguments, process.returncode, tail, shown=not quiet)
        raise StageFailedError(message, "\n".join(tail))
    return "\n".join(tail)


def pointer(md5: str, name: str) -> str:
    """The text of a DVC file that names a file or folder beside it by its hash; :func:`bring` puts that in place.

    Args:
        md5: DVC's hash.
        name: of what stands beside the DVC file.
    """
    return yaml.safe_dump({"outs": [{"md5": md5, "hash": "md5", "path": name}]}, sort_keys=False)


def bring(root: Path, target: str) -> None:
    """Put what a DVC file names in place, from the cache or else from the remote.

    Args:
        root: the workspace.
        target: the DVC file.

    Raises:
        LostDataError: it is in neither.
        StageFailedError: DVC failed in another way, as when the remote cannot be reached.
    """
    try:
        dvc(root, "checkout", "--force", target, quiet=True)
        return
    except StageFailedError:
        logger.info("%s is not in DVC's cache", target)
    try:
        dvc(root, "pull", "--force", target)
    except StageFailedError as error:
        if not _is_loss(error.output):
            raise
        raise LostDataError(
            f"{target}: DVC has its files neither here nor in its remote", error.output
        ) from error


def _is_loss(output: str) -> bool:
    """Whether a pull failed for missing files: DVC looked everywhere. Otherwise it stops before the checkout."""
    looked = "Missing cache files" in output or "No remote provided" in output
    return looked and "Checkout failed for following targets" in output


def push(root: Path, targets: Iterable[str]) -> None:
    """Push the outputs of stages, and the run cache, to the DVC remote; tried again a few times.

    Raises:
        StageFailedError: it failed each time.
    """
    targets = list(targets)
    for pause in _PUSH_PAUSES:
        try:
            dvc(root, "push", "--run-cache", *targets)
            return
        except StageFailedError as error:
            logger.warning("the push of %s failed, next try in %g s: %s", ", ".join(targets), pause, error)
            time.sleep(pause)
    dvc(root, "push", "--run-cache", *targets)


def run(
    root: Path,
    stage: str,
    *,
    force_once: str | None = None,
    push_outputs: bool = True,
    made: Mapping[str, str] | None = None,
) -> None:
    """Run one stage through DVC and push what it made.

    On a worker that does not have the stage's inputs, they are restored from the remote first (by DVC's run cache).

    Args:
        root: the workspace.
        stage: the stage's name.
        force_once: run it even if nothing changed, but only once for this occasion (such as the id of an Airflow run):
            a retry after a failed push does not train again.
        push_outputs: push to the DVC remote afterwards.
        made: DVC's hashes of what the stages before it made, perhaps on another worker; nothing else is read.

    Raises:
        StageFailedError: DVC or the stage failed.
        OtherDataError: inputs here are not those of ``made``.
    """
    clear_leftovers(root)  # dvc.lock is read before DVC is first called
    graph = load_graph(root / "dvc.yaml")
    _restore(root, graph, stage, made or {})
    note = root / STATE / "forced" / stage
    force = force_once is not None and not (note.exists() and note.read_text(encoding="utf-8") == force_once)
    dvc(root, "repro", "--single-item", *(["--force"] if force else []), stage)
    _check_read(root, stage, made or {})
    if force:
        with atomic_path(note) as temporary:
            temporary.write_text(str(force_once), encoding="utf-8")
    if push_outputs:
        push(root, [stage])


def _restore(root: Path, graph: dict[str, Stage], stage: str, made: Mapping[str, str]) -> None:
    """Bring what a stage reads, where it is not here or is of another run."""
    wanted = [dep for dep in graph[stage].deps if not (root / dep).exists()] + lineage.others(root, made)
    if not wanted:
        return
    logger.warning("inputs of %s are not here (%s); restoring them", stage, ", ".join(wanted))
    for parent in ancestors(graph, stage):
        dvc(root, "repro", "--single-item", "--pull", parent)
    if others := lineage.others(root, made):
        raise OtherDataError(
            f"stage {stage} would read {', '.join(others)}, but not as this run made it: DVC does not bring that here. "
            "This worker needs the same commit, the same params.yaml and the same DVC remote as the others"
        )


def _check_read(root: Path, stage: str, made: Mapping[str, str]) -> None:
    """Compare what a stage has read, by ``dvc.lock``, with what the stages before it made."""
    read = lineage.stage_hashes(root, stage, "deps") if made else {}
    if others := sorted(path for path, md5 in made.items() if read.get(path, md5) != md5):
        raise OtherDataError(
            f"stage {stage} has read {', '.join(others)}, which was changed after its stage made it: "
            "run that stage again, and then this one"
        )


def reproduce(root: Path, target: str) -> None:
    """``dvc repro`` of a stage and all that it needs."""
    dvc(root, "repro", target)


def status(root: Path, target: str) -> dict[str, list[Any]]:
    """What is not as ``dvc.lock`` has it, of a stage and all that it needs; nothing is run.

    Returns:
        by stage, as ``dvc status --json`` says it; stages as they were are left out.

    Raises:
        StageFailedError: DVC failed.
    """
    said = dvc(root, "status", "--with-deps", "--json", target, quiet=True)
    document = next(line for line in said.splitlines() if line.startswith("{"))  # beside what DVC warns of
    return dict(orjson.loads(document))
