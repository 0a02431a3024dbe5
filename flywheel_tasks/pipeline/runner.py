"""A thin runner around DVC: the only place that calls it."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml
from filelock import FileLock

from flywheel_tasks.pipeline import dvc_locks, lineage
from flywheel_tasks.pipeline.allocator import large_pages
from flywheel_tasks.pipeline.leftovers import clear_leftovers
from flywheel_tasks.pipeline.process import die_with_parent
from flywheel_tasks.pipeline.stage_io import STATE, locks_of
from flywheel_tasks.storage.atomic import atomic_path, replace

logger = logging.getLogger(__name__)

_TAIL_LINES = 40
# Where things lie before they take their places. DVC takes no pointer from an ignored folder, so not below .flywheel.
_BROUGHT = Path("inputs/brought")
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
    """A stage has read something else than what the stages before it made."""


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


def bring(root: Path, *targets: str) -> None:
    """Put what DVC files name in place, from the cache or else from the remote.

    Args:
        root: the workspace.
        targets: the DVC files.

    Raises:
        LostDataError: something is in neither; the message names it.
        StageFailedError: DVC failed in another way, as when the remote cannot be reached.
    """
    try:
        dvc(root, "checkout", "--force", *targets, quiet=True)
        return
    except StageFailedError:
        logger.info("not all of %s is in DVC's cache", ", ".join(targets))
    try:
        dvc(root, "pull", "--force", *targets)
    except StageFailedError as error:
        if not (lost := _lost(error.output)):
            raise
        raise LostDataError(
            f"{', '.join(lost)}: DVC has the files neither here nor in its remote", error.output
        ) from error


def _lost(output: str) -> list[str]:
    """What a pull could not put in place for missing files: DVC looked everywhere. Otherwise it stops before that."""
    looked = "Missing cache files" in output or "No remote provided" in output
    failed = output.partition("Checkout failed for following targets:\n")[2]
    return failed.partition("\nIs your cache")[0].splitlines() if looked else []


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
    made: Mapping[str, lineage.Part] | None = None,
) -> None:
    """Run one stage through DVC and push what it made.

    On a worker that does not have what the stages before it made, that is brought first; no other stage runs.

    Args:
        root: the workspace.
        stage: the stage's name.
        force_once: run it even if nothing changed, but only once for this occasion (such as the id of an Airflow run):
            a retry after a failed push does not train again.
        push_outputs: push to the DVC remote afterwards.
        made: what ``dvc.lock`` said of all stages before it where they ran, perhaps on another worker
            (:func:`flywheel_tasks.pipeline.lineage.part_of`); nothing else is read.

    Raises:
        StageFailedError: DVC or the stage failed.
        LostDataError: what a stage before it made is neither here nor in the remote.
        OtherDataError: it has read something else than what is named in ``made``.
    """
    clear_leftovers(root)  # dvc.lock is read before DVC is first called
    if made:
        _restore(root, made)
    note = root / STATE / "forced" / stage
    force = force_once is not None and not (note.exists() and note.read_text(encoding="utf-8") == force_once)
    dvc(root, "repro", "--single-item", *(["--force"] if force else []), stage)
    _check_read(root, stage, made or {})
    if force:
        with atomic_path(note) as temporary:
            temporary.write_text(str(force_once), encoding="utf-8")
    if push_outputs:
        push(root, [stage])


def _restore(root: Path, made: Mapping[str, lineage.Part]) -> None:
    """Bring what stages made, where it is not here or is of another run.

    ``dvc.lock`` says so only when all of it is in its place: after a kill before that it is brought again.
    """
    # Other tasks in this checkout wait, and nobody is forgotten meanwhile: their rows would come back.
    with FileLock(locks_of(root) / "restore.lock"), dvc_locks.at_work(root):
        outputs = lineage.outputs(made)
        missing = [path for path in outputs if not (root / path).exists()]
        wanted = {path: outputs[path] for path in sorted({*lineage.others(root, made), *missing})}
        if not wanted:
            return
        logger.warning("made elsewhere, or not here any more: %s; bringing it", ", ".join(wanted))
        _bring_by_hash(root, wanted)
        brought = [stage for stage, part in made.items() if wanted.keys() & lineage.hashes(part, "outs")]
        lineage.take(root, {stage: made[stage] for stage in brought})


def _bring_by_hash(root: Path, wanted: Mapping[str, str]) -> None:
    """Put files and folders in their places, all or none, by DVC's hashes. No stage runs for it, as ``repro`` would."""
    folder = root / _BROUGHT
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    for path, md5 in wanted.items():
        file = folder / f"{path}.dvc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pointer(md5, Path(path).name), encoding="utf-8")
    try:
        bring(root, *(f"{_BROUGHT}/{path}.dvc" for path in wanted))
        for path in wanted:
            replace(folder / path, root / path)
    except LostDataError as error:
        said = str(error).replace(f"{_BROUGHT}/", "")
        raise LostDataError(f"{said}; push them again where this run made them", error.output) from error
    except StageFailedError as error:
        raise StageFailedError(f"{', '.join(wanted)}: not brought now: {error}", error.output) from error
    finally:
        shutil.rmtree(folder)


def _check_read(root: Path, stage: str, made: Mapping[str, lineage.Part]) -> None:
    """Compare what a stage has read, by ``dvc.lock``, with what the stages before it made."""
    read = lineage.stage_hashes(root, stage, "deps") if made else {}
    if others := sorted(path for path, md5 in lineage.outputs(made).items() if read.get(path, md5) != md5):
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
