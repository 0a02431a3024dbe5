"""Finds a user's tasks in delivered labels, in a folder or on S3, and rewrites the files without them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.privacy.forget import Ids
from flywheel_tasks.traffic.log_store import FolderStore, LogStore, open_logs

_SUFFIXES = (".json", ".jsonl")


def _open(location: str, root: Path) -> tuple[LogStore, list[str]]:
    """The store of ``label.location`` of all generations, and its label files."""
    home = location.split("{", 1)[0]
    if "://" not in home:
        path = root / home
        if path.is_file():
            return FolderStore(path.parent), [path.name]
        if not path.is_dir():
            return FolderStore(path), []
    store = open_logs(home.rstrip("/"), root)
    return store, sorted(name for name in store.names() if name.endswith(_SUFFIXES))


def _theirs(row: Any, ids: Ids) -> bool:
    """Whether a label is of a task of the user: a line of ours, or an item of Label Studio's exports."""
    if not isinstance(row, Mapping):
        return False
    data = row.get("data")
    return ids.owns(row) or (isinstance(data, Mapping) and ids.owns(data))


def _without(name: str, data: bytes, ids: Ids) -> tuple[bytes, int]:
    """The file without the user's labels, and how many these were; all else stays as it is."""
    if name.endswith(".jsonl"):
        lines = data.splitlines(keepends=True)
        kept = [line for line in lines if not (line.strip() and _theirs(orjson.loads(line), ids))]
        return b"".join(kept), len(lines) - len(kept)
    items = orjson.loads(data)
    if not isinstance(items, list):
        return data, 0
    left = [item for item in items if not _theirs(item, ids)]
    return orjson.dumps(left, option=orjson.OPT_INDENT_2), len(items) - len(left)


def remove_labels(location: str, root: Path, ids: Ids, dry_run: bool) -> dict[str, int]:
    """Rewrite the delivered labels without those of a user's tasks.

    Args:
        location: the setting ``label.location``; what follows ``{generation}`` is any generation's.
        root: the workspace.
        ids: of the user.
        dry_run: only count.

    Returns:
        labels by file, files without any left out.
    """
    store, names = _open(location, root)
    found = {}
    for name in names:
        try:
            data, count = _without(name, b"".join(store.chunks(name)), ids)
        except orjson.JSONDecodeError:
            continue  # no labels: the stage ``label`` refuses it, too
        if count:
            found[name] = count
            if not dry_run:
                store.replace(name, data)
    return found
