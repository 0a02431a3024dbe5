"""Whose data a generation's models were trained on: kept in the registry, so that it outlives the tables."""

from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel_tasks.pipeline import earlier_pairs
from flywheel_tasks.settings import SPLITS, load_settings
from flywheel_tasks.storage.digests import bytes_digest, tree_digest, tree_digests
from flywheel_tasks.storage.objects import Exists, open_store

_NAME = "trained-on-"
_EARLIER = "pairs of earlier generations"  # beside the splits; the reward models learn from them
# Models beside the policy that are trained on users' data.
_OTHERS = ("pointwise_rm", "pairwise_rm", "signal_models")


class Checkpoint(NamedTuple):
    """A model that knows a user.

    Attributes:
        generation: that made it; ``workspace`` for models that are here and in no registry.
        digest: of the model.
        why: the splits that held the user, or the generation that it descends from.
    """

    generation: str
    digest: str
    why: str


def users_by_split(root: Path) -> dict[str, list[str]]:
    """The users (hashes) of each split in the workspace, sorted; splits that are not there are left out.

    Those whose pairs of earlier generations lie here, to be learned from, have a name of their own.
    """
    found = {}
    for split in SPLITS:
        path = root / f"data/split/{split}.parquet"
        if path.exists():
            users = pc.unique(pq.read_table(path, columns=["user_id"])["user_id"])
            found[split] = sorted(users.to_pylist())
    if earlier := earlier_pairs.users(root):
        found[_EARLIER] = earlier
    return found


def record(root: Path, generation: str) -> None:
    """Keep who is in the splits of a generation, and the digest of the model made of them, in the registry.

    The object is named by its content: a generation that is run again with other data gets another one.

    Args:
        root: the workspace, with ``data/split`` and ``models/policy``.
        generation: its id.
    """
    if not (root / "data/split").is_dir() or not (root / "models/policy").exists():
        return
    document = {
        "generation": generation,
        "model": tree_digest(root / "models/policy"),
        "others": _digests(root),
        "users": users_by_split(root),
    }
    data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    digest = bytes_digest(data).removeprefix("sha256:")[:16]
    store = open_store(load_settings(root / "params.yaml").registry.location, root)
    try:
        store.create(f"generations/{generation}/{_NAME}{digest}.json", data)
    except Exists:
        return


def _digests(root: Path) -> dict[str, str]:
    """The digests of the models beside the policy that are there."""
    homes = {name: home for name in _OTHERS if (home := root / "models" / name).exists()}
    return dict(zip(homes, tree_digests(homes.values()), strict=True))


def _said(users: dict[str, list[str]], user: str) -> str:
    return ", ".join(split for split in (*SPLITS, _EARLIER) if user in users.get(split, ()))


def checkpoints_of(root: Path, user: str) -> list[Checkpoint]:
    """The models trained on a user's data, or on top of such a model, oldest generation first.

    Args:
        root: the workspace.
        user: the hash.
    """
    store = open_store(load_settings(root / "params.yaml").registry.location, root)
    found: list[Checkpoint] = []
    bundles: dict[str, Any] = {}
    for key in store.list("generations/"):
        _, generation, name = key.split("/", 2)
        if name == "inputs.json":
            bundles[generation] = orjson.loads(store.get(key))
        elif name.startswith(_NAME):
            document = orjson.loads(store.get(key))
            if said := _said(document["users"], user):
                found.append(Checkpoint(generation, document["model"], said))
                others = document.get("others", {})
                found += [Checkpoint(generation, f"{name} {others[name]}", said) for name in sorted(others)]
    tainted = {item.generation for item in found}
    for generation in sorted(bundles):
        parent = bundles[generation]["generation"]["champion"]["model"]
        if parent in tainted and generation not in tainted:
            tainted.add(generation)
            found.append(Checkpoint(generation, "all of this generation", f"starts from {parent}"))
    here = root / "models/policy"
    if here.exists() and (said := _said(users_by_split(root), user)):
        digest = tree_digest(here)
        if digest not in {item.digest for item in found}:
            found.append(Checkpoint("workspace", digest, said))
            found += [Checkpoint("workspace", f"{name} {of}", said) for name, of in _digests(root).items()]
    return sorted(found)
