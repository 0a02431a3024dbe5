"""Digests of log files that were read before: a file of the same version is not read again to pin it.

So a generation, or a look at a test, downloads of a bucket only what came since the last one. Kept in
``.flywheel/cache/digests``, one file a location; to lose it costs time.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import DocumentError, read_json, write_json
from flywheel_tasks.traffic.log_store import LogStore, MissingLogError

_EVERY = 20.0  # seconds
FOLDER = Path(".flywheel/cache/digests")


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("version"), str)
        and isinstance(entry.get("sha256"), str)
        and type(entry.get("bytes")) is int
    )


class KnownDigests:
    """What is known of a location's files.

    Args:
        root: the workspace that keeps it.
        location: of the logs.
        store: of that location.
    """

    def __init__(self, root: Path, location: str, store: LogStore) -> None:
        self._written = time.monotonic()
        name = bytes_digest(location.encode()).removeprefix("sha256:")[:32]
        self._file, self._store = root / FOLDER / f"{name}.json", store
        try:
            document = read_json(self._file)
        except (FileNotFoundError, DocumentError):
            document = {}
        entries = document.items() if isinstance(document, dict) else ()
        self._kept: dict[str, dict[str, Any]] = {path: entry for path, entry in entries if _is_entry(entry)}

    def of(self, path: str, version: str | None) -> dict[str, Any] | None:
        """``{"path", "sha256", "bytes"}`` of a file that has this version; None if it must be read."""
        entry = self._kept.get(path)
        if version is None or entry is None or entry["version"] != version:
            return None
        return {"path": path, "sha256": entry["sha256"], "bytes": entry["bytes"]}

    def note(self, partition: Mapping[str, Any], version: str | None) -> None:
        """Remember a file that was just read, if it still has the version that it had before.

        Args:
            partition: ``{"path", "sha256", "bytes"}``.
            version: from before it was read; None: it may not be known by it.
        """
        path = partition["path"]
        try:
            same = version is not None and self._store.version(path) == version
        except MissingLogError:
            same = False
        self._kept.pop(path, None)
        if same:
            self._kept[path] = {
                "version": version,
                "sha256": partition["sha256"],
                "bytes": partition["bytes"],
            }
        if time.monotonic() - self._written > _EVERY:
            self._write()  # a run that is killed in the middle of terabytes need not begin again

    def drop(self, path: str) -> None:
        """Forget a file whose bytes are not what its version promised, so that it is read again."""
        if self._kept.pop(path, None) is not None:
            self._write()

    def _write(self) -> None:
        write_json(self._kept, self._file)
        self._written = time.monotonic()

    def keep(self, present: list[str]) -> None:
        """Write it, without files that are no longer there.

        Args:
            present: all files of the location.
        """
        names = set(present)
        self._kept = {path: entry for path, entry in self._kept.items() if path in names}
        self._write()
