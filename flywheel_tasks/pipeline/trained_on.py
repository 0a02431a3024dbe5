"""Whose data a generation's models were trained on: kept in the registry, so that it outlives the tables."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flywheel_tasks.pipeline import earlier_pairs
from flywheel_tasks.settings import SPLITS, load_settings
from flywheel_tasks.storage.digests import bytes_digest, tree_digest, tree_digests
from flywheel_tasks.storage.documents import read_json
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
    document = {"generation": generation, **_here(root, users_by_split(root)), "starts": _starts(root)}
    data = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    digest = bytes_digest(data).removeprefix("sha256:")[:16]
    store = open_store(load_settings(root / "params.yaml").registry.location, root)
    try:
        store.create(f"generations/{generation}/{_NAME}{digest}.json", data)
    except Exists:
        return


def _starts(root: Path) -> list[str]:
    """Generations that models beside the policy went on from, by the metrics of their training."""
    paths = [root / f"metrics/train_{name}.json" for name in _OTHERS]
    started = [read_json(path).get("start", {}).get("generation") for path in paths if path.exists()]
    return sorted({name for name in started if name is not None})


def _digests(root: Path) -> dict[str, str]:
    """The digests of the models beside the policy that are there."""
    homes = {name: home for name in _OTHERS if (home := root / "models" / name).exists()}
    return dict(zip(homes, tree_digests(homes.values()), strict=True))


class _Trained(NamedTuple):
    """What was trained on whom: the record of a generation, or what lies in the workspace."""

    generation: str
    model: str
    others: Mapping[str, str]
    users: Mapping[str, Collection[str]]

    def checkpoints(self, user: str) -> list[Checkpoint]:
        said = ", ".join(split for split in (*SPLITS, _EARLIER) if user in self.users.get(split, ()))
        digests = [self.model, *(f"{name} {self.others[name]}" for name in sorted(self.others))]
        return [Checkpoint(self.generation, digest, said) for digest in digests] if said else []


def _trained(generation: str, document: Mapping[str, Any], whom: Collection[str]) -> _Trained:
    users = {split: frozenset(whom).intersection(of) for split, of in document["users"].items()}
    return _Trained(generation, document["model"], document.get("others", {}), users)


def checkpoints_of(root: Path, users: Collection[str]) -> dict[str, list[Checkpoint]]:
    """The models trained on each user's data, or on top of such a model, oldest generation first.

    Args:
        root: the workspace.
        users: their hashes.
    """
    store = open_store(load_settings(root / "params.yaml").registry.location, root)
    records, parents = list[_Trained](), defaultdict[str, list[str]](list)
    for key in store.list("generations/"):
        _, generation, name = key.split("/", 2)
        if name == "inputs.json":
            champion = orjson.loads(store.get(key))["generation"]["champion"]["model"]
            parents[generation].append(champion)
        elif name.startswith(_NAME):
            document = orjson.loads(store.get(key))
            parents[generation] += document.get("starts", [])
            records.append(_trained(generation, document, users))
    here, by_split = None, users_by_split(root)
    # Models are hashed only for somebody who is there.
    if (root / "models/policy").exists() and not set(users).isdisjoint(chain(*by_split.values())):
        here = _trained("workspace", _here(root, by_split), users)
    return {user: _known_by(user, records, parents, here) for user in users}


def _here(root: Path, users: dict[str, list[str]]) -> dict[str, Any]:
    return {"model": tree_digest(root / "models/policy"), "others": _digests(root), "users": users}


def _known_by(
    user: str, records: Sequence[_Trained], parents: Mapping[str, Sequence[str]], here: _Trained | None
) -> list[Checkpoint]:
    found = [one for record in records for one in record.checkpoints(user)]
    tainted, digests = {one.generation for one in found}, {one.digest for one in found}
    for generation, those in sorted(parents.items()):
        known = [parent for parent in those if parent in tainted]
        if known and generation not in tainted:
            tainted.add(generation)
            found.append(Checkpoint(generation, "all of this generation", f"starts from {known[0]}"))
    if here is not None and here.model not in digests:
        found += here.checkpoints(user)
    return sorted(found)
