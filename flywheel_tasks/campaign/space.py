"""Frees the disk of a campaign's models that no later generation reads.

A generation makes five models, each as large as the base model (0.54 GB for the default of 135M parameters). Without
this, twelve generations would fill 32 GB. Tables, metrics, panels and reports are small and are all kept.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.campaign.folder import SHARERS, Folder
from flywheel_tasks.pipeline import lineage
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry import REWARD_MODELS, open_registry

# Made anew by every generation; base model and embedder are not.
MODELS = (
    "models/pointwise_rm",
    "models/pairwise_rm",
    "models/policy_sft",
    "models/policy_dpo",
    "models/policy",
)


def made(root: Path) -> dict[str, str]:
    """DVC hashes of the models that a workspace's ``dvc.lock`` names, by path."""
    outputs = lineage.dvc_outputs(root) if (root / "dvc.lock").exists() else {}
    return {path: outputs[path]["md5"] for path in MODELS if path in outputs}


def _in_registry(root: Path, *, reward_models: bool) -> set[str]:
    """Hashes that the registry may ask for: champion, the one before, perhaps reward models of the last launch."""
    registry = open_registry("registry", root)  # a campaign's own place for it
    state = registry.state()
    refs = [
        ref.dvc.md5 for ref in (state.champion, state.previous) if ref is not None and ref.dvc is not None
    ]
    for name in sorted(registry.generations(), reverse=True) if reward_models else ():
        if (kept := registry.find_generation(name, REWARD_MODELS)) is not None:
            refs += [model["dvc"]["md5"] for model in orjson.loads(kept).values()]
            break
    return set(refs)


def _of_others(folder: Folder, cache: Path) -> set[str]:
    """Hashes that other campaigns of the cache need."""
    wanted: set[str] = set()
    for note in sorted((cache / SHARERS).glob("*.json")):
        other = Folder(Path(read_json(note)["home"]))
        if other.home != folder.home.resolve() and other.plan.exists():
            wanted |= _in_registry(other.workspace, reward_models=True) | set(made(other.workspace).values())
            first = other.generation("g0001")
            wanted |= set(read_json(first).get("models", {}).values()) if first.exists() else set()
    return wanted


def _path(cache: Path, md5: str) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]


def _files(tree: Path) -> set[str]:
    """Hashes of the files of a folder that DVC keeps; none of one that is not there."""
    if not tree.exists():
        return set()
    return {entry["md5"] for entry in json.loads(tree.read_text(encoding="utf-8"))}


def _remove(cache: Path, trees: Iterable[str]) -> int:
    """Remove folders from DVC's cache, but no file that another folder has too.

    The lists go last: a removal that is cut short goes on the next time.

    Returns:
        bytes of the files removed.
    """
    gone = {_path(cache, md5) for md5 in trees}
    dead: set[str] = set().union(*map(_files, gone))
    for tree in (cache / "files/md5").glob("*/*.dir"):
        dead -= _files(tree) if tree not in gone else set()
    freed = 0
    for md5 in dead:
        path = _path(cache, md5)
        if path.exists():
            freed += path.stat().st_size
            path.unlink()
    for tree in gone:
        tree.unlink(missing_ok=True)
    return freed


def prune(folder: Folder, plan: Campaign, found: Sequence[Mapping[str, Any]], *, over: bool = False) -> int:
    """Remove the models of generations that are over, except those that something may still read.

    Kept are the champion, the one before it, the reward models of the last launched generation, and the models of the
    first generation where ablations may follow, which then restore them. Nothing is removed with ``keep_models``.

    Args:
        folder: of a campaign between two generations.
        plan: its settings.
        found: records of the generations that are over.
        over: no generation follows, so no reward model is measured against the last ones.

    Returns:
        bytes freed.
    """
    cache = folder.cache
    if plan.keep_models or cache is None or not found:
        return 0
    kept = _in_registry(folder.workspace, reward_models=not over) | _of_others(folder, cache)
    if plan.ablations:
        kept |= set(found[0].get("models", {}).values())
    trees = {md5 for record in found for md5 in record.get("models", {}).values()} - kept
    for path, md5 in made(folder.workspace).items():
        if md5 in trees:  # a hard link of the cache's file, which would keep the space
            shutil.rmtree(folder.workspace / path, ignore_errors=True)
    return _remove(cache, trees)
