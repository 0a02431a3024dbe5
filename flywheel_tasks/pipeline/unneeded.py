"""Frees DVC's cache of what nothing will read again: ``dvc gc`` that knows the registry.

DVC alone would delete champions: it knows what the workspace and git name, not what the registry may ask for. So what
the registry names is named to DVC as well, by pointers that are here only while it looks.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.forgetting import nobody_else
from flywheel_tasks.pipeline.generation_ids import current, number_of
from flywheel_tasks.storage.registry import PAIRS, REWARD_MODELS, Registry
from flywheel_tasks.storage.registry_state import ModelRef

# DVC takes no pointer from an ignored folder, so not below .flywheel.
_POINTERS = Path("inputs/registered")
# The newest launched generation's are compared with; those before it belong to the one that compares.
_REWARD_MODELS = 2


class UnneededError(ValueError):
    """What is needed cannot be told, so nothing is removed; the message says why."""


class Unneeded(NamedTuple):
    """What nothing will read again.

    Attributes:
        kept: what the registry may ask for, by name.
        lost: of these what DVC does not have.
        objects: files and listings in the cache that are not needed.
        bytes: of them.
    """

    kept: list[str]
    lost: list[str]
    objects: int
    bytes: int


def wanted(registry: Registry) -> dict[str, str]:
    """What the registry may ask for: DVC's hashes by name.

    These are all models that were champion, candidates of running tests, the reward models of the last launched
    generations, and the pairs that launched generations learned from.

    Args:
        registry: of the workspace.
    """
    history = registry.history()
    models = {
        f"champion-{change.state.champion.generation}-{change.state.champion.digest[-8:]}": change.state.champion
        for change in history
        if change.state.champion
    }
    if history:
        models |= {f"candidate-{name}": model for name, model in history[-1].state.candidates.items()}
    of_judges = 0
    for name in sorted(registry.generations(), key=number_of, reverse=True):
        if (kept := registry.find_generation(name, PAIRS)) is not None:
            models[f"pairs-{name}"] = ModelRef.model_validate(orjson.loads(kept)["ref"])
        kept = registry.find_generation(name, REWARD_MODELS)
        if kept is not None and of_judges < _REWARD_MODELS:
            of_judges += 1
            for kind, found in orjson.loads(kept).items():
                models[f"{kind}-{name}"] = ModelRef.model_validate(found)
    return {name: model.dvc.md5 for name, model in models.items() if model.dvc is not None}


def undecided(root: Path, registry: Registry) -> list[str]:
    """Generations that were opened and neither tested nor declined, but for the workspace's own.

    Their models may be waiting for an approval, and only the ``dvc.lock`` of when they were made names them.

    Args:
        root: the workspace.
        registry: of it.
    """
    here = current(root)
    state = registry.state()
    declined = {change.detail.get("generation") for change in registry.history() if change.kind == "declined"}
    return [
        name
        for name in registry.generations()
        if registry.find_generation(name, "inputs.json") is not None
        and (here is None or name != here["generation"])
        and name not in declined
        and state.tested(name) is None
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep DVC from warning of every stage that was not run yet, and from asking whether files may be lost: never."""
    from dvc import prompt

    logger = logging.getLogger("dvc")
    level, confirm = logger.level, prompt.confirm
    logger.setLevel(logging.ERROR)
    prompt.confirm = lambda *_: False
    try:
        yield
    finally:
        logger.setLevel(level)
        prompt.confirm = confirm


@contextmanager
def _named_to_dvc(root: Path, hashes: Mapping[str, str]) -> Iterator[None]:
    folder = root / _POINTERS
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        for name, md5 in hashes.items():
            (folder / f"{name}.dvc").write_text(runner.pointer(md5, name), encoding="utf-8")
        yield
    finally:
        shutil.rmtree(folder)


def _bring_listings(repo: Any, hashes: Mapping[str, str]) -> list[str]:
    """Bring the listings of folders, without which DVC cannot say which files are theirs; give those that are lost."""
    remotes = [repo.cloud.get_remote_odb(name, hash_name="md5") for name in sorted(repo.config["remote"])]
    lost = []
    for name, md5 in hashes.items():
        if not md5.endswith(".dir") or repo.cache.local.exists(md5):
            continue
        place = next((place for place in remotes if place.exists(md5)), None)
        if place is None:
            lost.append(name)
        else:
            repo.cache.local.add(place.oid_to_path(md5), place.fs, md5)
    return sorted(lost)


def _own_cache(repo: Any, root: Path) -> None:
    if not Path(repo.cache.local.path).resolve().is_relative_to(root.resolve()):
        raise UnneededError(
            f"DVC's cache is {repo.cache.local.path}, outside {root}: what others there need is unknown"
        )


def clean(root: Path, registry: Registry, *, remove: bool) -> Unneeded:
    """Find what nothing will read again in DVC's cache, and perhaps remove it.

    Needed is what the registry may ask for (:func:`wanted`), what the workspace has made (``dvc.lock`` and pointers),
    and what the tips of git's branches and tags name. Remotes are left alone: other workspaces put there what only
    their own ``dvc.lock`` names.

    Args:
        root: the workspace.
        registry: of it.
        remove: it; else nothing is changed.

    Raises:
        UnneededError: the registry is empty, a generation is undecided, the cache is shared, or something that is
            needed is not to be found.
        BusyError: DVC or a stage is at work here.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with nobody_else(root), _quiet(), Repo(str(root)) as repo:
        _own_cache(repo, root)
        if registry.state().champion is None:
            raise UnneededError("the registry knows no champion: is registry.location the right one?")
        if waiting := undecided(root, registry):
            raise UnneededError(
                f"not decided yet: {', '.join(waiting)}. What they made may be wanted still, and is not named here any "
                "more. Decide each where it was made (flywheel approve launch), or give it up here: "
                f"flywheel registry decline {waiting[0]} --by NAME --reason WHY"
            )
        hashes = wanted(registry)
        lost = _bring_listings(repo, hashes)
        with _named_to_dvc(root, {name: md5 for name, md5 in hashes.items() if name not in lost}):
            tips = {"all_branches": True, "all_tags": True} if (root / ".git").exists() else {}
            try:
                found = repo.used_objs(**tips)
            except DvcException as error:
                raise UnneededError(
                    f"DVC cannot tell what is needed, so nothing is removed: {error}"
                ) from error
        used = {item.value for items in found.values() for item in items}
        cache = repo.cache.local
        paths = [Path(cache.oid_to_path(name)) for name in cache.all() if name not in used]
        size = sum(path.stat().st_size for path in paths)
        if remove:  # listings first: one without its files would be taken for whole
            for path in sorted(paths, key=lambda path: path.suffix != ".dir"):
                path.unlink(missing_ok=True)
    return Unneeded(sorted(hashes.keys() - set(lost)), lost, len(paths), size)
