"""Outputs appear whole or not at all: written under a temporary name, synced, then renamed."""

import os
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


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Give a temporary path beside ``final``; rename it on success, remove it on an error.

    Args:
        final: the path that the finished file or folder gets.

    Yields:
        the path to write to (it does not exist yet).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        replace(temporary, final)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
