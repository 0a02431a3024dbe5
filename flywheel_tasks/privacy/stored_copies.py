"""Copies of tables outside the workspace: DVC's cache and remotes, and the run cache that points at them.

An object there has no name, only a digest, so every one that begins as a table does is read. Pages (HTML) quote
rows of the tables that they are about, and so does the Markdown that an approver reads; where a table of a user
lies, all pages go, for DVC makes them again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa

from flywheel_tasks.privacy.forget import BATCH_ROWS, Ids
from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.storage.tables import read_batches

# As pages begin, in lower case: HTML, and the headings of `gate/approval.md` (report/approval.py).
_PAGES = (b"<!doctype html", b"# pass", b"# blocked")


@dataclass
class Place:
    """A DVC cache or remote.

    Attributes:
        name: ``cache``, or the remote's name.
        root: where it is, in the words of its file system.
        fs: DVC's file system of it.
        tables: objects that are tables.
        pages: objects that are pages.
    """

    name: str
    root: str
    fs: Any
    tables: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)

    def _paths(self, folder: str) -> list[str]:
        home = self.fs.join(self.root, *folder.split("/"))
        return sorted(self.fs.find(home)) if self.fs.exists(home) else []

    def look(self, ids: Ids) -> None:
        """Find the tables and pages, and learn the user's ids from them."""
        self.tables, self.pages = [], []
        for path in self._paths("files/md5"):
            if path.endswith(".dir"):
                continue
            with self.fs.open(path, "rb") as file:
                start = file.read(max(map(len, _PAGES)))
            if start.lower().startswith(_PAGES):
                self.pages.append(path)
            elif start.startswith((b"PAR1", b"{")):
                self.tables.append(path)
                for row in self._rows(path):
                    ids.learn(row)

    def owned(self, ids: Ids) -> list[str]:
        """The tables with rows of the user."""
        return [path for path in self.tables if any(ids.owns(row) for row in self._rows(path))]

    @contextmanager
    def _local(self, path: str) -> Iterator[Path]:
        if self.fs.protocol == "local":
            yield Path(path)
            return
        with TemporaryDirectory(prefix="flywheel-") as folder:
            copy = Path(folder) / "object"
            self.fs.get_file(path, str(copy))
            yield copy

    def _rows(self, path: str) -> Iterator[dict[str, Any]]:
        """The rows of an object; none if it is no table."""
        with self._local(path) as file:
            try:
                with file.open("rb") as opened:
                    if opened.read(4) == b"PAR1":
                        for batch in read_batches(file, BATCH_ROWS):
                            yield from batch.to_pylist()
                        return
                    opened.seek(0)
                    for line in opened:
                        if line.strip() and isinstance(row := orjson.loads(line), dict):
                            yield row
            except (orjson.JSONDecodeError, pa.ArrowInvalid):
                return  # a document of several lines

    def pointing_at(self, objects: list[str]) -> list[str]:
        """Directory listings and entries of the run cache that name one of these objects."""
        gone = {digest_of(path) for path in objects}
        listings = []
        for path in self._paths("files/md5"):
            if path.endswith(".dir") and gone & {
                item["md5"] for item in orjson.loads(self.fs.cat_file(path))
            }:
                listings.append(path)
        gone |= {digest_of(path) for path in listings}
        runs = []
        for path in self._paths("runs"):
            entry = load_yaml(self.fs.cat_file(path).decode()) or {}
            if gone & {out.get("md5") for out in entry.get("outs", [])}:
                runs.append(path)
        return listings + runs

    def drop(self, paths: list[str]) -> None:
        """Delete; what is gone already is no error."""
        for path in paths:
            if self.fs.exists(path):
                self.fs.remove(path)


def digest_of(path: str) -> str:
    """The digest that an object's path spells."""
    first, second = path.replace("\\", "/").split("/")[-2:]
    return first + second


def places(root: Path, remotes: bool) -> tuple[list[Place], list[str]]:
    """The cache of a workspace and, if asked for, its remotes.

    Args:
        root: the workspace.
        remotes: look at them, too.

    Returns:
        the places, and the names of remotes that are not looked at.
    """
    from dvc.fs import LocalFileSystem

    if not (root / ".dvc/config").exists():
        return [Place("cache", str(root / ".dvc/cache"), LocalFileSystem())], []
    from dvc.repo import Repo

    found, left = [], []
    with Repo(str(root)) as repo:
        home = Path(repo.cache.local.path).parent.parent  # .../files/md5
        found.append(Place("cache", str(home), LocalFileSystem()))
        for name in sorted(repo.config["remote"]):
            if not remotes:
                left.append(name)
                continue
            remote = repo.cloud.get_remote(name)
            found.append(Place(name, remote.path, remote.fs))
    return found, left
