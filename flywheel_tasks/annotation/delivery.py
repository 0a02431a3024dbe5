"""Where people's labels are delivered, and what of it a generation uses: pinned by digest in ``inputs/labels.json``.

The stage ``label`` depends on that file, so labels that arrive or change make it run again, and it reads nothing
that is not what was pinned.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flywheel_tasks.annotation.reading import Reading, read_files
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.settings import Label, Privacy
from flywheel_tasks.settings.annotation import GENERATION
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.objects import FolderStore, MissingObjectError, ObjectStore, open_store

PIN = "inputs/labels.json"
_SUFFIXES = (".json", ".jsonl")


def location_of(settings: Label, generation: str) -> str:
    """The place where a generation's labels are delivered.

    Args:
        settings: ``label`` of params.yaml.
        generation: stands in for ``{generation}``.
    """
    return settings.location.replace(GENERATION, generation)


def _store(location: str, root: Path) -> tuple[ObjectStore, str]:
    """The store of a location, and the one file in it that is meant (empty: all)."""
    if "://" not in location and (root / location).is_file():
        return FolderStore((root / location).parent), (root / location).name
    return open_store(location, root), ""


def pin_labels(settings: Label, generation: str, root: Path) -> dict[str, Any]:
    """Write ``inputs/labels.json``: who labels, and the delivered files with their digests.

    Args:
        settings: ``label`` of params.yaml.
        generation: the open generation.
        root: the workspace.

    Returns:
        what was written.
    """
    document: dict[str, Any] = {"annotator": settings.annotator, "files": []}
    if settings.annotator != "simulated":
        document["location"] = location_of(settings, generation)
        store, only = _store(document["location"], root)
        for name in store.list(only):
            if name.endswith(_SUFFIXES):
                data = store.get(name)
                document["files"].append({"path": name, "digest": bytes_digest(data), "bytes": len(data)})
    if not (root / PIN).exists() or read_json(root / PIN) != document:
        write_json(document, root / PIN)
    return document


def read_pinned(pin: Path, root: Path, tasks: Sequence[Mapping[str, Any]], privacy: Privacy) -> Reading:
    """Read the pinned label files of a batch.

    Args:
        pin: ``inputs/labels.json``.
        root: the workspace.
        tasks: rows of the batch.
        privacy: the section ``privacy``: a rewrite with an identifier is put aside.

    Raises:
        AnnotationError: a file is gone, is not what was pinned, or cannot be read as labels.
    """
    document = read_json(pin)
    if not document["files"]:
        return Reading()
    store, _ = _store(document["location"], root)
    with TemporaryDirectory() as folder:
        files = []
        for number, item in enumerate(document["files"]):
            name = f"{document['location'].rstrip('/')}/{item['path']}"
            if "://" not in document["location"] and (root / document["location"]).is_file():
                name = document["location"]
            try:
                data = store.get(item["path"])
            except MissingObjectError as error:
                raise AnnotationError(f"{name}: is pinned in {pin.name}, but is gone; {_HINT}") from error
            if (found := bytes_digest(data)) != item["digest"]:
                raise AnnotationError(
                    f"{name}: is {found}, pinned in {pin.name} is {item['digest']}; {_HINT}"
                )
            path = Path(folder) / f"{number}{Path(item['path']).suffix}"
            path.write_bytes(data)
            files.append((name, path))
        return read_files(files, tasks, privacy)


_HINT = "pin the labels again: flywheel annotation pin"
