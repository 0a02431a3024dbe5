"""Parsed partitions kept between runs, by what they were made of; the oldest ones go when there are too many.

An entry is a folder that appears whole, by a rename. Whoever uses one takes hard links of its files, so an entry may be
removed at any time; a run that is killed leaves only temporary folders, which a later run removes.
"""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.traffic.partition import read_whole

# What reads and writes partitions: another release of it may do so in another way.
_LIBRARIES = ("pyarrow", "duckdb", "numpy", "orjson")
_CODE = (
    "columns",
    "drift",
    "events",
    "identity",
    "lines",
    "parsed",
    "partition",
    "schemas",
    "tabular",
    "withheld",
)
_ABANDONED = 86_400  # seconds after which a temporary folder has no owner


def code_version(*more: Path) -> str:
    """A digest over the parser's code and the libraries that it uses.

    Args:
        more: files of code that make something of what is parsed.
    """
    digest = hashlib.sha256()
    for path in (*(Path(__file__).with_name(f"{name}.py") for name in _CODE), *more):
        digest.update(path.read_bytes())
    for name in _LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of what was made of these facts (JSON)."""
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a folder of the same files."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        try:
            os.link(file, target / file.name)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, target / file.name)


class PartitionCache:
    """Entries below a folder.

    Args:
        folder: made at the first write.
        scope: entries of another scope (settings, code, users to forget) are removed, for they hold what this one
            must not see.
        most: bytes of all entries.
        whole: the document of an entry; None if it, or a file that goes with it, is not there.
    """

    def __init__(
        self,
        folder: Path,
        scope: str,
        most: int,
        whole: Callable[[Path], dict[str, Any] | None] = read_whole,
    ) -> None:
        self._all, self._folder, self._most, self._whole = folder, folder / scope, most, whole

    def get(self, key: str, into: Path) -> dict[str, Any] | None:
        """Put an entry's files into a new folder, and give its document; None if there is no such entry."""
        entry = self._folder / key
        if not entry.exists():
            return None
        try:
            _link(entry, into)
            os.utime(entry)
        except FileNotFoundError:  # removed meanwhile
            shutil.rmtree(into, ignore_errors=True)
            return None
        # Whoever removes it by hand may do so while it is listed: then some files are missing, and no link failed.
        document = self._whole(into)
        if document is None:
            shutil.rmtree(into, ignore_errors=True)
            self._remove(entry)  # to be made again
        return document

    def put(self, key: str, folder: Path) -> None:
        """Keep a folder's files as an entry, if it can be done: to parse again later costs only time."""
        if not self._most or (self._folder / key).exists():
            return
        temporary = self._folder / f".{uuid.uuid4().hex}"
        try:
            _link(folder, temporary)
            temporary.rename(self._folder / key)
        except OSError:  # another run was first, or removes the scope; no room
            return
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keep(self, keys: Collection[str]) -> None:
        """Remove all entries of the scope but these."""
        for entry in self._folder.glob("[!.]*"):
            if entry.name not in keys:
                self._remove(entry)

    def _remove(self, entry: Path) -> bool:
        """Remove an entry, renamed first so that nobody finds it half removed; False if it is gone."""
        gone = entry.with_name(f".{uuid.uuid4().hex}")
        try:
            entry.rename(gone)
        except FileNotFoundError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def trim(self) -> None:
        """Remove other scopes, abandoned folders, and the entries that were not used for longest."""
        if not self._all.is_dir():
            return
        entries: list[tuple[float, Path, int]] = []
        for scope in self._all.iterdir():
            if scope != self._folder:
                shutil.rmtree(scope, ignore_errors=True)
                continue
            for entry in scope.iterdir():
                try:
                    age = entry.stat().st_mtime
                    size = sum(file.stat().st_size for file in entry.iterdir())
                except FileNotFoundError:
                    continue
                if not entry.name.startswith("."):
                    entries.append((age, entry, size))
                elif time.time() - age > _ABANDONED:
                    shutil.rmtree(entry, ignore_errors=True)
        total = sum(size for _, _, size in entries)
        for _, entry, size in sorted(entries, key=lambda item: (item[0], item[1].name)):
            if total <= self._most:
                return
            if self._remove(entry):
                total -= size
