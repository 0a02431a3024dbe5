"""The pools of policies of a generation, pinned in ``inputs/``: where each policy lies, and its digest.

Each stage that draws candidates has a pin of its own: a policy more in one pool does not run the other stage again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flywheel_tasks.settings import LocalPolicy, PoolEntry, RemotePolicy
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.hub import hub_model
from flywheel_tasks.storage.registry_state import ModelRef

PIN = "inputs/pool.json"  # of annotation_batch
REJECTION_PIN = "inputs/rejection_pool.json"


def pin_pool(
    root: Path,
    entries: tuple[PoolEntry, ...],
    champion: ModelRef,
    previous: ModelRef | None,
    place: Callable[[ModelRef, str], None],
    pin: str = PIN,
) -> None:
    """Write a pin and put the previous champion's files in place, where the pool has it.

    Args:
        root: the workspace.
        entries: the setting ``pool`` of a stage.
        champion: of the generation; its files are there already.
        previous: the champion before, if there is one.
        place: puts a model's files below ``inputs/`` under a name.
        pin: where to write, in the workspace.

    Raises:
        FileNotFoundError: a local policy's folder is missing.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry == "champion":
            rows.append(_row("champion", "inputs/champion", champion.digest, champion.generation))
        elif entry == "previous":
            if previous is not None and previous.digest != champion.digest:
                place(previous, "previous")
                rows.append(_row("previous", "inputs/previous", previous.digest, previous.generation))
        elif isinstance(entry, LocalPolicy):
            folder = _folder(entry, root)
            rows.append(_row(entry.name, str(folder), tree_digest(root / folder), entry.model))
        elif isinstance(entry, RemotePolicy):
            rows.append({"name": entry.name, "endpoint": entry.endpoint, "model": entry.model})
    document = {"policies": rows}
    if not (root / pin).exists() or read_json(root / pin) != document:
        write_json(document, root / pin)


def _row(name: str, path: str, digest: str, model: str) -> dict[str, Any]:
    return {"name": name, "path": path, "digest": digest, "model": model}


def _folder(entry: LocalPolicy, root: Path) -> Path:
    """The folder of a local policy, or of a hub model after its download (its path ends in the commit)."""
    if (root / entry.model).is_dir():
        return Path(entry.model)
    return hub_model(entry.model)
