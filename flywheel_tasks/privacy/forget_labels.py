"""Finds a user's tasks in delivered labels, in a folder or on S3, and rewrites the files without them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import orjson

from flywheel_tasks.pipeline.generation_ids import GenerationError, number_of
from flywheel_tasks.privacy.forget import Ids
from flywheel_tasks.settings.annotation import GENERATION
from flywheel_tasks.traffic.log_store import FolderStore, LogStore, open_logs

_SUFFIXES = (".json", ".jsonl")


def _split(location: str) -> tuple[str, re.Pattern[str] | None]:
    """The folder of all generations' labels, and the form of the names in it that are theirs (None: all are)."""
    if GENERATION not in location:
        return location.rstrip("/"), None
    home = location.partition(GENERATION)[0].rpartition("/")[0]
    first, second, *others = map(re.escape, location[len(home) + 1 :].rstrip("/").split(GENERATION))
    rest = "".join(f"(?P=generation){one}" for one in others)
    return home, re.compile(rf"{first}(?P<generation>[^/]+){second}{rest}(?:/.*)?")


def _delivered_to(form: re.Pattern[str], name: str) -> bool:
    found = form.fullmatch(name)
    try:
        return found is not None and number_of(found["generation"]) >= 0
    except GenerationError:
        return False


def _open(location: str, root: Path) -> tuple[LogStore, Path, list[str]]:
    """The store of ``label.location`` of all generations, its folder if it is one, and the files delivered there."""
    home, form = _split(location)
    store, folder = open_logs(home, root), root / home
    if "://" not in home:
        if form is None and folder.is_file():
            return FolderStore(folder.parent), folder.parent, [folder.name]
        if not folder.is_dir():
            return store, folder, []
    return store, folder, sorted(name for name in store.names() if form is None or _delivered_to(form, name))


def local_files(location: str, root: Path) -> list[Path]:
    """Files that are delivered labels, no tables of stages.

    Args:
        location: the setting ``label.location``.
        root: the workspace.
    """
    if "://" in location:
        return []
    _, folder, names = _open(location, root)
    return [folder / name for name in names]


def _theirs(row: Any, ids: Ids) -> bool:
    """Whether a label is of a task of the user: a line of ours, or an item of Label Studio's exports."""
    if not isinstance(row, Mapping):
        return False
    data = row.get("data")
    return ids.owns(row) or (isinstance(data, Mapping) and ids.owns(data))


class _Without(NamedTuple):
    """A file without the users' labels, all else as it was; how many these were, and what of it cannot be read."""

    data: bytes
    removed: int
    broken: str | None = None


def _without(name: str, data: bytes, ids: Ids) -> _Without:
    if name.endswith(".jsonl"):
        return _without_lines(data, ids)
    try:
        items = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _Without(data, 0, f"is no JSON: {error}")
    if not isinstance(items, list):
        return _Without(data, 0, "is no list of tasks")
    left = [item for item in items if not _theirs(item, ids)]
    return _Without(orjson.dumps(left, option=orjson.OPT_INDENT_2), len(items) - len(left))


def _without_lines(data: bytes, ids: Ids) -> _Without:
    """Line by line: a torn one hides no others."""
    kept: list[bytes] = []
    broken: str | None = None
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            theirs = bool(line.strip()) and _theirs(orjson.loads(line), ids)
        except orjson.JSONDecodeError as error:
            theirs, broken = False, broken or f"line {number} is no JSON: {error}"
        if not theirs:
            kept.append(line)
    return _Without(b"".join(kept), len(lines) - len(kept), broken)


@dataclass
class Delivered:
    """What delivered labels hold of some users: labels by file; files that cannot be read to their end, and why."""

    labels: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def remove_labels(location: str, root: Path, ids: Ids, dry_run: bool) -> Delivered:
    """Rewrite the delivered labels without those of a user's tasks.

    Args:
        location: the setting ``label.location``; what follows ``{generation}`` is any generation's.
        root: the workspace.
        ids: of the user.
        dry_run: only count.

    Returns:
        labels by file, files without any left out; and what cannot be read, which stays as it is: it may hold the user.

    Raises:
        LogsError: a file cannot be read or written, or was written to meanwhile; it stays as it is.
    """
    store, _, names = _open(location, root)
    if not dry_run and ("://" in location or (root / _split(location)[0]).is_dir()):
        store.sweep()
    found = Delivered()
    for name in names:
        if not name.endswith(_SUFFIXES):
            continue
        version = store.version(name)
        data, removed, broken = _without(name, b"".join(store.chunks(name)), ids)
        if broken:
            found.broken[name] = broken
        if removed:
            found.labels[name] = removed
            if not dry_run:
                with TemporaryDirectory() as folder:
                    kept = Path(folder) / "kept"
                    kept.write_bytes(data)
                    store.replace(name, kept, version)
    return found
