"""Content digests: what an approval is bound to and what resume state is keyed by."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:<hex>``."""
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
