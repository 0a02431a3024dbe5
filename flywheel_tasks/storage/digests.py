"""Content digests: what an approval is bound to and what resume state is keyed by."""

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

# A model is looked at several times in one call, and takes a second or more each time. So large a file cannot be
# written anew within one tick of the file system's clock; a small one can.
_REMEMBERED_BYTES = 1 << 24


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:<hex>``; this process reads a large one again only after it has changed."""
    stat = path.stat()
    if stat.st_size < _REMEMBERED_BYTES:
        return _read_digest(path)
    return _remembered(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=256)
def _remembered(path: Path, *state: int) -> str:
    return _read_digest(path)


def _read_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def bytes_digest(data: bytes) -> str:
    """SHA-256 of bytes, as ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tree_digest(path: Path) -> str:
    """SHA-256 over a file, or over the relative names and contents of all files of a folder, sorted.

    Args:
        path: a file or folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise FileNotFoundError(path)
    lines = (
        f"{item.relative_to(path).as_posix()} {file_digest(item)}\n"
        for item in sorted(path.rglob("*"))
        if item.is_file()
    )
    return bytes_digest("".join(lines).encode())


def tree_digests(paths: Collection[Path]) -> list[str]:
    """:func:`tree_digest` of several files or folders, in their order, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter free
        return list(pool.map(tree_digest, paths))
