"""Ids of generations: their form, their order, the one that ``inputs/`` holds."""

import re
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.objects import Exists, open_store
from flywheel_tasks.storage.registry import Registry

INPUTS = "inputs"
_RUNS = ".flywheel/runs"  # not in the registry: runs of another scheduler may have the same ids
_ID = re.compile(r"g\d{4,}")


class GenerationError(ValueError):
    """A generation cannot be opened; the message says why and what to do."""


class BusyError(GenerationError):
    """Another generation is worked on in the workspace; later it may be free."""


def current(root: Path) -> dict[str, Any] | None:
    """The generation that ``inputs/`` holds, or None."""
    path = root / INPUTS / "generation.json"
    return read_json(path) if path.exists() else None


def held_instead(root: Path, generation: str) -> str | None:
    """What a workspace holds in place of a generation: "no generation" or the id of another; None if it holds it."""
    here = current(root)
    if here is None:
        return "no generation"
    return None if here["generation"] == generation else str(here["generation"])


def still_holds(root: Path, generation: str) -> None:
    """See that ``inputs/`` holds a generation still: between two calls of DVC another one may be opened.

    Args:
        root: the workspace.
        generation: that is worked on.

    Raises:
        GenerationError: they hold another one, or none.
    """
    if found := held_instead(root, generation):
        raise GenerationError(
            f"{root} holds {found} by now, not {generation}: another one was opened meanwhile. To go on with it: "
            f"flywheel generation run --id {generation}"
        )


def leave(root: Path, generation: str) -> None:
    """Take another generation's name off ``inputs/``, before anything there is changed for this one.

    After a kill in between they hold no generation, and not this one's champion under the other's name.

    Args:
        root: the workspace.
        generation: whose inputs are about to be written; if they have its name, it stays.
    """
    here = current(root)
    if here is not None and here["generation"] != generation:
        (root / INPUTS / "generation.json").unlink()


def number_of(generation: str) -> int:
    """The number in a generation's id (``g0002`` is 2).

    Raises:
        GenerationError: it is no such id.
    """
    if not _ID.fullmatch(generation):
        raise GenerationError(f"generation {generation!r}: an id is g and at least four digits, e.g. g0002")
    return int(generation[1:])


def next_id(root: Path, registry: Registry) -> str:
    """The id after the highest one that the registry or ``inputs/`` knows."""
    known = set(registry.generations())
    if (here := current(root)) is not None:
        known.add(here["generation"])
    return f"g{max((number_of(item) for item in known), default=0) + 1:04d}"


def id_of_run(root: Path, registry: Registry, run_id: str) -> str:
    """The id that a run of the scheduler works on: :func:`next_id` when it first asks, and then the same.

    Args:
        root: the workspace, which remembers it.
        registry: of it.
        run_id: the run's, any text.
    """
    store, key = open_store(_RUNS, root), f"{bytes_digest(run_id.encode()).removeprefix('sha256:')}.json"
    chosen = {"run": run_id, "generation": next_id(root, registry)}
    try:
        store.create(key, orjson.dumps(chosen))
    except Exists:
        chosen = orjson.loads(store.get(key))
    return chosen["generation"]


def before(registry: Registry, generation: str) -> list[str]:
    """Ids of the generations before one, the newest first."""
    known = [item for item in registry.generations() if number_of(item) < number_of(generation)]
    return sorted(known, key=number_of, reverse=True)
