"""Locks of the kernel by which DVC's callers see each other in a workspace.

A process id says nothing to a caller in another container, which has the checkout but not the processes. A lock of the
kernel on a file of the checkout is the same for all, and is released when its owner dies, however it dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flywheel_tasks.pipeline.stage_io import locks_of

_TMP = Path(".dvc/tmp")
# DVC's own, held while it writes: the first for dvc.lock and all else, the second for its list of readers and writers.
_REPO, _RWLOCK = _TMP / "lock", _TMP / "rwlock.lock"


def _at_work(root: Path) -> Path:
    return locks_of(root) / "dvc"


def _taken(stack: ExitStack, path: Path, how: int) -> bool:
    """Take a lock until the stack is closed; False if another has it and ``how`` does not wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True


@contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Say that a DVC works in the workspace; any number may.

    Args:
        root: the workspace.
    """
    with ExitStack() as stack:
        _taken(stack, _at_work(root), fcntl.LOCK_SH)
        yield


@contextmanager
def alone(root: Path) -> Iterator[bool]:
    """Keep DVC out of the workspace, if none is in it.

    Args:
        root: the workspace.

    Yields:
        True: no DVC that :func:`at_work` speaks for is here, and none that was started by hand is writing its files;
        so it stays until the end. False: one is.
    """
    with ExitStack() as stack:
        paths = [_at_work(root)]
        if (root / _TMP).is_dir():
            paths += [root / _REPO, root / _RWLOCK]
        yield all(_taken(stack, path, fcntl.LOCK_EX | fcntl.LOCK_NB) for path in paths)


@contextmanager
def settled(root: Path, *, write: bool = False) -> Iterator[None]:
    """Wait until no DVC is writing ``dvc.lock``, and hold it so: DVC writes that file in place, bit by bit.

    Args:
        root: the workspace.
        write: wait also for those who read it: it is about to be written here.
    """
    with ExitStack() as stack:
        if (root / _TMP).is_dir():
            _taken(stack, root / _REPO, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
        yield
