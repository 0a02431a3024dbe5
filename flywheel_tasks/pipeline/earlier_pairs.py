"""Preference pairs of earlier launched generations, placed in ``inputs/earlier_pairs/``: reward models learn them too.

A launch keeps which table of pairs it learned from: DVC's hash, digest, and how many pairs it had to train on. Opening
a later generation places those of the newest launched ones: one Parquet file a generation with its ``reward_train``
pairs, and ``index.json``. What measured or evaluated then is never copied. Users who have asked to be forgotten are
left out whenever the files are looked after, and ``flywheel forget`` takes them out at once.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.pipeline import lineage
from flywheel_tasks.pipeline.runner import LostDataError
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry import PAIRS, Registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef, RegistryError
from flywheel_tasks.storage.tables import read_table, write_table

FOLDER = "inputs/earlier_pairs"
INDEX = f"{FOLDER}/index.json"
NONE: dict[str, Any] = {"generations": []}
_TABLE = "data/preferences/pairs.parquet"
_PURPOSE = "reward_train"
Place = Callable[[ModelRef, str], None]
_log = logging.getLogger(__name__)


def _to_train_on(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["purpose"], _PURPOSE))


def keep(registry: Registry, root: Path, generation: str) -> None:
    """Keep which pairs a launched generation learned from, once; the first account stands.

    Args:
        registry: keeps it.
        root: the workspace; without the table or its place in ``dvc.lock`` nothing is kept.
        generation: that is launched.
    """
    path = root / _TABLE
    if not path.is_file():
        return
    # DVC stores a folder file by file, each by its own MD5: one table can be had without its neighbours.
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    ref = ModelRef(
        generation=generation,
        digest=file_digest(path),
        dvc=DvcRef(path=_TABLE, md5=md5),
        code_version=lineage.code_version(root),
        data_version=lineage.data_version(root),
    )
    found = {"ref": ref.model_dump(mode="json"), "pairs": _to_train_on(read_table(path)).num_rows}
    try:
        registry.put_generation(generation, PAIRS, orjson.dumps(found, option=orjson.OPT_SORT_KEYS))
    except RegistryError:  # a repeated start of the same test; code or lock may have changed since
        registry.get_generation(generation, PAIRS)


def launched(registry: Registry, earlier: Iterable[str]) -> list[dict[str, Any]]:
    """What was kept of each launched generation.

    Args:
        registry: knows it.
        earlier: ids of the generations before this one, the newest first.

    Returns:
        the newest first, each with ``ref`` and ``pairs``.
    """
    kept = (registry.find_generation(name, PAIRS) for name in earlier)
    return [orjson.loads(found) for found in kept if found is not None]


def pin(
    root: Path, found: Sequence[dict[str, Any]], most: int, forgotten: Collection[str], place: Place
) -> None:
    """Put the pairs of the newest launched generations in place, without those of forgotten users.

    A table that is here already is kept and looked through again. So one that DVC has lost since, as when a user in it
    was forgotten, is lost to new workspaces only. One that DVC has lost is named in the index.

    Args:
        root: the workspace.
        found: of :func:`launched`, as the generation was opened with.
        most: how many generations; 0: none.
        forgotten: hashes of users.
        place: puts a file of DVC below ``inputs/`` under a name, and checks its digest.

    Raises:
        StageFailedError: DVC cannot bring one now, as when its remote cannot be reached.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known = _sources(root)
    rows = []
    for item in found[:most]:
        ref = ModelRef.model_validate(item["ref"])
        about = {"generation": ref.generation, "source": ref.digest, "pairs": item["pairs"], "reason": None}
        if known.get(ref.generation) != ref.digest or not _file(root, ref.generation).exists():
            about["reason"] = _fetch(root, ref, place)
        rows.append(about)
    names = {row["generation"] for row in rows if row["reason"] is None}
    for path in folder.glob("*.parquet"):
        if path.stem not in names:
            path.unlink()
    remove_users(root, forgotten)
    _write_index(root, {"generations": rows})


def _file(root: Path, generation: str) -> Path:
    return root / FOLDER / f"{generation}.parquet"


def _sources(root: Path) -> dict[str, str]:
    """Digest of the table that each file here was made of, by generation."""
    path = root / INDEX
    rows = read_json(path)["generations"] if path.exists() else []
    return {row["generation"]: row["source"] for row in rows if row["reason"] is None}


def _fetch(root: Path, ref: ModelRef, place: Place) -> str | None:
    """Make a generation's file; the reason where its table is not to be had."""
    name = f"earlier_pairs_{ref.generation}.parquet"
    raw = root / "inputs" / name
    try:
        if (root / _TABLE).is_file() and file_digest(root / _TABLE) == ref.digest:
            shutil.copyfile(root / _TABLE, raw)  # the generation that ran here last
        else:
            place(ref, name)
        write_table(_to_train_on(read_table(raw)), _file(root, ref.generation))
    except LostDataError as error:
        _log.warning("the pairs of %s are lost, so none is learned from: %s", ref.generation, error)
        return f"DVC has lost the pairs of {ref.generation}"
    finally:
        for path in (raw, raw.with_name(f"{name}.dvc")):
            path.unlink(missing_ok=True)
    return None


def remove_users(root: Path, forgotten: Collection[str]) -> None:
    """Rewrite the files without the pairs of some users; a file that has none of them stays as it is."""
    if not forgotten:  # most calls; the array alone would load pandas
        return
    gone = pa.array(sorted(forgotten), pa.string())
    for path in sorted((root / FOLDER).glob("*.parquet")):
        table = read_table(path)
        theirs = pc.is_in(table["user_id"], value_set=gone)
        if pc.any(theirs).as_py():
            write_table(table.filter(pc.invert(theirs)), path)


def users(root: Path) -> list[str]:
    """Whose pairs are here (hashes), sorted."""
    found = {
        user
        for path in (root / FOLDER).glob("*.parquet")
        for user in pc.unique(read_table(path)["user_id"]).to_pylist()
    }
    return sorted(found)


def write_none(root: Path) -> None:
    """The index where no pairs of earlier generations are learned from."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    _write_index(root, NONE)


def _write_index(root: Path, document: dict[str, Any]) -> None:
    path = root / INDEX
    if not path.exists() or read_json(path) != document:
        write_json(document, path)
