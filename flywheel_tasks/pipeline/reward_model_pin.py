"""The reward models of the last launched generation: kept with its record, pinned in ``inputs/reward_models.json``.

The next generation's reward models go on from them, and are measured against them on the same held-out pairs
(:mod:`flywheel_tasks.rewards.earlier`).
"""

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.pipeline import lineage, trained_on
from flywheel_tasks.pipeline.runner import LostDataError
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry import REWARD_MODELS, SPLIT, Registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef, RegistryError

PIN = "inputs/reward_models.json"
KINDS = ("pointwise", "pairwise")
Place = Callable[[ModelRef, str], None]
NONE: dict[str, Any] = {
    "generation": None,
    "models": {},
    "split": None,
    "reason": "no earlier model: no generation was launched before",
}
_log = logging.getLogger(__name__)


def keep(registry: Registry, root: Path, generation: str) -> None:
    """Keep where the reward models of a launched generation are, once; the first account stands.

    Args:
        registry: keeps it.
        root: the workspace, with ``models/`` and ``dvc.lock``; a model that is not there is left out.
        generation: that is launched.
    """
    models = {}
    for kind in KINDS:
        path = f"models/{kind}_rm"
        if not (root / path).is_dir():
            continue
        ref = ModelRef(
            generation=generation,
            digest=tree_digest(root / path),
            dvc=DvcRef(path=path, md5=lineage.dvc_output(root, path)["md5"]),
            code_version=lineage.code_version(root),
            data_version=lineage.data_version(root),
        )
        models[kind] = ref.model_dump(mode="json")
    try:
        registry.put_generation(generation, REWARD_MODELS, orjson.dumps(models, option=orjson.OPT_SORT_KEYS))
    except RegistryError:  # a repeated start of the same test; code or lock may have changed since
        registry.get_generation(generation, REWARD_MODELS)


def launched(registry: Registry, earlier: Iterable[str], place: Place) -> dict[str, Any]:
    """The reward models of the newest launched generation, put in place.

    Models that DVC has lost are no reason to stop a generation: nothing is decided by the comparison. A remote that
    cannot be reached is, since it may be back tomorrow, and what is found here is kept for good. So are files that are
    not what they should be.

    Args:
        registry: knows them.
        earlier: ids of the generations before this one, the newest first.
        place: puts a model's files below ``inputs/`` under a name, and checks their digest.

    Returns:
        ``generation``, ``models`` by kind (as in the registry), ``split`` (salt and shares of that generation, by which
        its training users are known), and the ``reason`` where there is no model.

    Raises:
        StageFailedError: DVC cannot bring them now.
    """
    for name in earlier:
        kept = registry.find_generation(name, REWARD_MODELS)
        if kept is None:
            continue
        models = orjson.loads(kept)
        split = registry.find_generation(name, SPLIT)
        try:
            _place_all(models, place)
        except LostDataError as error:
            return _lost(name, error)
        return {
            "generation": name,
            "models": models,
            "split": None if split is None else _rule(orjson.loads(split)),
            "reason": f"no earlier model: {name} kept none of this kind",
        }
    return NONE


def _knows(root: Path, generation: str, users: Collection[str]) -> bool:
    """Whether a generation's models learned from one of the users, or go on from models that did."""
    known = trained_on.checkpoints_of(root, users).values() if users else ()
    return any(one.generation == generation for found in known for one in found)


def _lost(generation: str, error: LostDataError) -> dict[str, Any]:
    _log.warning("the reward models of %s are lost, so none is compared with: %s", generation, error)
    return {
        **NONE,
        "generation": generation,
        "reason": f"no earlier model: DVC has lost those of {generation}",
    }


def _rule(split: dict[str, Any]) -> dict[str, Any]:
    return {"salt": split["salt"], "shares": split["shares"]}


def _place_all(models: dict[str, Any], place: Place) -> None:
    for kind, model in sorted(models.items()):
        place(ModelRef.model_validate(model), _name(kind))


def _name(kind: str) -> str:
    return f"earlier_{kind}_rm"


def pin(root: Path, found: dict[str, Any] | None, place: Place, forgotten: Collection[str] = ()) -> None:
    """Write ``inputs/reward_models.json``, and put the models in place where they are not yet.

    Models that DVC has lost since are named there as lost; the registry still says which they were. Where they learned
    from a user who is forgotten by now, that is said too: new models are compared with them, and do not go on from
    them.

    Args:
        root: the workspace.
        found: of :func:`launched`, as the generation was opened with; None if a release opened it that pinned none.
        place: as there.
        forgotten: users (hashes) who asked to be.

    Raises:
        StageFailedError: DVC cannot bring them now.
    """
    document = found or NONE
    if document["models"] and _knows(root, document["generation"], forgotten):
        document = {**document, "knows_forgotten": True}
    missing = {
        kind: model
        for kind, model in document["models"].items()
        if not (root / "inputs" / _name(kind)).is_dir()
        or tree_digest(root / "inputs" / _name(kind)) != model["digest"]
    }
    try:
        _place_all(missing, place)
    except LostDataError as error:
        document = _lost(document["generation"], error)
    pinned = {
        **document,
        "models": {
            kind: {"path": f"inputs/{_name(kind)}", "digest": model["digest"]}
            for kind, model in sorted(document["models"].items())
        },
    }
    if not (root / PIN).exists() or read_json(root / PIN) != pinned:
        write_json(pinned, root / PIN)
