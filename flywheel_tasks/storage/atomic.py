"""Outputs appear whole or not at all: written under a temporary name, then renamed.

That holds when a process is killed. After a power cut a file that was renamed shortly before may be empty, unless it
was written with ``synced``. The registry's objects and the gateway's logs are synced where they are written.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace(temporary: Path, final: Path) -> None:
    """Put a finished file or folder in the place of ``final``, on the same file system.

    Args:
        temporary: what was written.
        final: where it belongs; an earlier file or folder there is removed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    temporary.replace(final)


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


UNFINISHED = re.compile(
    r"\..+\.tmp-\d+"
)  # names that :func:`atomic_path` writes to; a killed process leaves them


@contextmanager
def atomic_path(final: Path, *, synced: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``final``; rename it on success, remove it on an error.

    Args:
        final: the path that the finished file or folder gets.
        synced: of a file: on the disk before it is renamed, and its name afterwards. For what a person wrote or cannot
            be made again; not for what is written every second.

    Yields:
        the path to write to (it does not exist yet).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        if synced:
            sync(temporary)
        replace(temporary, final)
        if synced:
            sync(final.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
