"""Who may change which generation the workspace holds: one at a time, and nobody while DVC works on what is there."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from flywheel_tasks.pipeline import dvc_locks
from flywheel_tasks.pipeline.generation_ids import BusyError
from flywheel_tasks.pipeline.leftovers import living_dvc
from flywheel_tasks.pipeline.stage_io import locks_of

# Seconds that a DVC may take to end: one whose runner was killed a moment ago, or one that only looks.
_PATIENCE = 10.0


def generation_lock(root: Path) -> FileLock:
    """The lock of whoever changes which generation the workspace holds."""
    return FileLock(locks_of(root) / "generation.lock")


def dvc_is_at_work(root: Path) -> bool:
    """Whether a DVC works in the workspace, however it was started, and does not end within seconds."""
    until = time.monotonic() + _PATIENCE
    while _at_work_now(root):
        if time.monotonic() >= until:
            return True
        time.sleep(0.1)
    return False


def _at_work_now(root: Path) -> bool:
    with dvc_locks.alone(root) as alone:
        return not alone or bool(living_dvc(root))


@contextmanager
def undisturbed(root: Path, generation: str | None) -> Iterator[None]:
    """Hold :func:`generation_lock` for writing a generation's inputs, if no DVC is at work.

    DVC hashes what a stage has read when the stage ends: of inputs that were changed meanwhile it would write down that
    the stage has read them, and skip it for the generation that they are of.

    Args:
        root: the workspace.
        generation: whose inputs are about to be written; None: the next one's.

    Raises:
        BusyError: DVC is at work here.
    """
    with generation_lock(root):
        if dvc_is_at_work(root):
            whose = generation or "the next generation"
            raise BusyError(
                f"DVC is at work in {root}, and the inputs of {whose} would be written under it: nothing was changed. "
                "Try again when it is done, or work in a checkout of its own"
            )
        yield
