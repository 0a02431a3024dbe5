"""Opens a generation: pins what it starts from, the champion and the newest logs, into ``inputs/``.

``inputs/generation.json`` names the generation, ``inputs/logs.json`` its log partitions with their digests,
``inputs/users.json`` the key of user ids by its fingerprint, ``inputs/champion.dvc`` the champion's files by DVC hash,
``inputs/pool.json`` and ``inputs/rejection_pool.json`` the policies that candidates come from, ``inputs/labels.json``
the labels that people have delivered, ``inputs/profile.json`` holds the profile of the data of the last accepted
generation, which new data is compared with, ``inputs/splits.json`` how earlier launched generations were split, and
``inputs/reward_models.json`` the reward models of the last launched one, which the new ones are measured against, and
``inputs/earlier_pairs/`` the preference pairs of the launched ones, which the new ones learn from too.
They are the roots of the data graph. The registry keeps a copy, written once, so that any worker (and anyone, later)
can start from exactly the same.
One thing is never what it was: users who have asked to be forgotten since are forgotten in every generation, older
ones too.
"""

import re
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import yaml
from ruamel.yaml import YAML

from flywheel_tasks.annotation.delivery import pin_labels
from flywheel_tasks.pipeline import earlier_pairs, lineage, reward_model_pin, runner
from flywheel_tasks.pipeline.pool_pin import REJECTION_PIN, pin_pool
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.forgotten import open_forgotten
from flywheel_tasks.storage.registry import PROFILE, SPLIT, Registry, open_registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, IdentityError, pin_users, user_key
from flywheel_tasks.traffic.logs import pin_logs

INPUTS = "inputs"
_BUNDLE = "inputs.json"
_NO_PROFILE: dict[str, Any] = {"generation": None, "profile": None}
_NO_SPLITS: dict[str, Any] = {"earlier": []}
_ID = re.compile(r"g\d{4,}")


class GenerationError(ValueError):
    """A generation cannot be opened; the message says why and what to do."""


def current(root: Path) -> dict[str, Any] | None:
    """The generation that ``inputs/`` holds, or None."""
    path = root / INPUTS / "generation.json"
    return read_json(path) if path.exists() else None


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


def ensure_champion(root: Path) -> ModelRef:
    """The registry's champion; before the first launch, the base model is made and becomes it."""
    settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    champion = registry.state().champion
    if champion is None:
        runner.run(root, "base_model", push_outputs=False)
        out = lineage.dvc_output(root, "models/base")
        champion = ModelRef(
            generation="base",
            digest=tree_digest(root / "models/base"),
            dvc=DvcRef(path="models/base", md5=out["md5"]),
            code_version=lineage.code_version(root),
            data_version=settings.base.policy,
        )
        registry.bootstrap(champion, by="flywheel: first generation")
    return champion


def place_champion(root: Path, champion: ModelRef, name: str = "champion") -> None:
    """Put a champion's files at ``inputs/champion``, from DVC's cache or its remote, and check their digest.

    Args:
        root: the workspace.
        champion: the model.
        name: of its folder in ``inputs/``: ``previous`` for the champion before.

    Raises:
        GenerationError: the registry has no DVC hash for it, or the files are not the champion.
    """
    if champion.dvc is None:
        raise GenerationError(f"the registry has no DVC hash for {name} {champion.generation}")
    pointer = root / INPUTS / f"{name}.dvc"
    out = {"md5": champion.dvc.md5, "hash": "md5", "path": name}
    text = yaml.safe_dump({"outs": [out]}, sort_keys=False)
    if not pointer.exists() or pointer.read_text(encoding="utf-8") != text:
        with atomic_path(pointer) as temporary:
            temporary.write_text(text, encoding="utf-8")
    target = f"{INPUTS}/{name}.dvc"
    try:
        runner.dvc(root, "checkout", "--force", target, quiet=True)
    except runner.StageFailedError:
        runner.dvc(root, "pull", "--force", target)
    if (found := tree_digest(root / INPUTS / name)) != champion.digest:
        raise GenerationError(
            f"{INPUTS}/{name} is {found}, but the registry's {name} ({champion.generation}) is {champion.digest}"
        )


def _pinned_logs(settings: Settings, root: Path) -> dict[str, Any]:
    """The logs of the newest days: pinned where they are, or extracted from a warehouse first."""
    logs = settings.logs
    if not logs.location.startswith("ibis+"):
        return pin_logs(logs.location, root, newest_days=logs.newest_days)
    from flywheel_tasks.traffic.warehouse import extract

    return extract(logs.location, logs.warehouse, logs.newest_days, settings.ingest.rename, root)


def newest(pinned: dict[str, Any], days: int) -> dict[str, Any]:
    """Keep the partitions of the newest days.

    Args:
        pinned: the document of :func:`flywheel_tasks.traffic.logs.pin_logs`.
        days: how many, counted back from the newest partition's date.

    Raises:
        GenerationError: there are no partitions.
    """
    partitions = pinned["partitions"]
    if not partitions:
        raise GenerationError(
            f"no logs at {pinned['location']} (logs.location): expected date=YYYY-MM-DD/*.jsonl[.gz]"
        )

    def day(partition: dict[str, Any]) -> date:
        return date.fromisoformat(partition["path"].split("date=", 1)[1][:10])

    last = max(day(partition) for partition in partitions)
    first = last - timedelta(days=days - 1)
    return {**pinned, "partitions": [p for p in partitions if day(p) >= first]}


def accepted_profile(registry: Registry, generation: str) -> dict[str, Any]:
    """The data profile of the newest earlier generation that was launched.

    Args:
        registry: keeps the profile of each launched generation.
        generation: that is opened.

    Returns:
        ``generation`` and ``profile``; both None before the first launch.
    """
    for item in _before(registry, generation):
        if (kept := registry.find_generation(item, PROFILE)) is not None:
            return {"generation": item, "profile": orjson.loads(kept)}
    return _NO_PROFILE


def _before(registry: Registry, generation: str) -> list[str]:
    """Ids of the generations before one, the newest first."""
    known = [item for item in registry.generations() if number_of(item) < number_of(generation)]
    return sorted(known, key=number_of, reverse=True)


def launched_splits(registry: Registry, generation: str) -> dict[str, Any]:
    """Salt, shares and evaluation prompts of every earlier generation that was launched.

    Args:
        registry: keeps the record of each launched generation.
        generation: before which.

    Returns:
        ``earlier``: a list, the oldest first, each with ``generation``, ``salt``, ``shares`` and ``evaluated``.
    """
    earlier = reversed(_before(registry, generation))
    kept = ((item, registry.find_generation(item, SPLIT)) for item in earlier)
    return {
        "earlier": [{"generation": item, **orjson.loads(data)} for item, data in kept if data is not None]
    }


def set_seed(root: Path, seed: int) -> None:
    """Write a seed into params.yaml, comments kept."""
    path = root / "params.yaml"
    yaml_file = YAML()
    yaml_file.preserve_quotes = True
    document = yaml_file.load(path.read_text(encoding="utf-8"))
    if document["seed"] == seed:
        return
    document["seed"] = seed
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml_file.dump(document, file)


def _key_of(root: Path, registry: Registry) -> str:
    """The fingerprint of the environment's key for user ids, which must be that of the generation before."""
    settings = load_settings(root / "params.yaml")
    found = user_key(settings.logs.source).fingerprint
    earlier = registry.generations()
    if not earlier:
        return found
    before = orjson.loads(registry.get_generation(earlier[-1], _BUNDLE)).get("user_key", DEMO_FINGERPRINT)
    # From simulated users to real ones nobody moves: they are other people.
    if before not in (found, DEMO_FINGERPRINT):
        raise IdentityError(
            f"the key for user ids is {found}, but {earlier[-1]} used {before}: users would move between training "
            "and evaluation, and forgotten ones would come back. Set the old key; if it is lost, start anew with "
            "another registry.location and delete old tables"
        )
    return found


def write_users(root: Path, fingerprint: str) -> None:
    """Write ``inputs/users.json`` with the list of forgotten users as it is now.

    Args:
        root: the workspace.
        fingerprint: of the generation's key for user ids.
    """
    location = load_settings(root / "params.yaml").registry.location
    document = pin_users(fingerprint, open_forgotten(location, root).users(fingerprint))
    path = root / INPUTS / "users.json"
    if not path.exists() or read_json(path) != document:
        write_json(document, path)


def _restore(root: Path, registry: Registry, generation: str, *, params: bool) -> None:
    """Write ``inputs/`` (and params.yaml) as the registry keeps them."""
    bundle = orjson.loads(registry.get_generation(generation, _BUNDLE))
    if params and (root / "params.yaml").read_text(encoding="utf-8") != bundle["params"]:
        with atomic_path(root / "params.yaml") as temporary:
            temporary.write_text(bundle["params"], encoding="utf-8")
    profile = root / INPUTS / "profile.json"
    if current(root) != bundle["generation"] or not profile.exists():
        # opened by a release that pinned none: as before the first launch
        write_json(bundle.get("profile", _NO_PROFILE), profile)
    splits = root / INPUTS / "splits.json"
    if current(root) != bundle["generation"] or not splits.exists():
        write_json(bundle.get("splits", _NO_SPLITS), splits)
    if current(root) != bundle["generation"]:
        write_json(bundle["logs"], root / INPUTS / "logs.json")
        place_champion(root, ModelRef.model_validate(bundle["champion"]))
        write_json(bundle["generation"], root / INPUTS / "generation.json")
    elif not (root / INPUTS / "champion").exists():
        place_champion(root, ModelRef.model_validate(bundle["champion"]))
    if "user_key" not in bundle:
        raise GenerationError(
            f"{generation} was opened by an earlier version, whose tables hold raw user ids: open a new generation"
        )
    write_users(root, bundle["user_key"])
    previous = bundle.get("previous")
    reward_model_pin.pin(root, bundle.get("reward_models"), partial(place_champion, root))
    _pin_pairs(root, bundle.get("earlier_pairs", []))
    _pin_settings_of_inputs(
        root,
        generation,
        ModelRef.model_validate(bundle["champion"]),
        None if previous is None else ModelRef.model_validate(previous),
    )


def _pin_settings_of_inputs(
    root: Path, generation: str, champion: ModelRef, previous: ModelRef | None
) -> None:
    """Pin what the settings name: the pools of policies, and the labels that people have delivered so far."""
    settings = load_settings(root / "params.yaml")
    place = partial(place_champion, root)
    pin_pool(root, settings.annotation_batch.pool, champion, previous, place)
    pin_pool(root, settings.rejection_sample.pool, champion, previous, place, REJECTION_PIN)
    pin_labels(settings.label, generation, root)


def _pin_pairs(root: Path, found: list[dict[str, Any]]) -> None:
    """Put the pairs of earlier launched generations in place, as many as a reward model asks for."""
    settings = load_settings(root / "params.yaml")
    sections = (settings.pointwise_rm, settings.pairwise_rm)
    most = max(section.earlier_pairs.generations for section in sections)
    forgotten = read_json(root / INPUTS / "users.json")["forgotten"]
    earlier_pairs.pin(root, found, most, forgotten, partial(place_champion, root))


def refresh_labels(root: Path) -> dict[str, Any]:
    """Pin the labels that people have delivered for the open generation by now.

    Returns:
        ``inputs/labels.json``.

    Raises:
        GenerationError: no generation is open.
    """
    here = current(root)
    if here is None:
        raise GenerationError(f"no generation is open in {root}: flywheel generation open")
    return pin_labels(load_settings(root / "params.yaml").label, here["generation"], root)


def sync(root: Path, generation: str) -> None:
    """Bring a worker's ``inputs/`` and params.yaml to what a generation was opened with.

    Raises:
        RegistryError: the registry does not know the generation.
    """
    settings = load_settings(root / "params.yaml")
    _restore(root, open_registry(settings.registry.location, root), generation, params=True)


def open_generation(root: Path, *, generation: str | None = None, seed: int | None = None) -> str:
    """Open a generation, or return to one that was opened before.

    Args:
        root: the workspace.
        generation: its id; by default the next one.
        seed: written into params.yaml first.

    Returns:
        the generation's id.

    Raises:
        GenerationError: the id is malformed, there are no logs, or the champion's files are not what they should be.
    """
    settings: Settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    name = generation or next_id(root, registry)
    number_of(name)
    if name in registry.generations():
        _restore(root, registry, name, params=False)
        if seed is not None:
            set_seed(root, seed)
        return name
    if seed is not None:
        set_seed(root, seed)
    key = _key_of(root, registry)
    champion = ensure_champion(root)
    place_champion(root, champion)
    previous = registry.state().previous
    place = partial(place_champion, root)
    reward_models = reward_model_pin.launched(registry, _before(registry, name), place)
    pairs = earlier_pairs.launched(registry, _before(registry, name))
    logs = newest(_pinned_logs(settings, root), settings.logs.newest_days)
    description = {
        "generation": name,
        "champion": {"model": champion.generation, "digest": champion.digest},
        "logs_digest": bytes_digest(orjson.dumps(logs, option=orjson.OPT_SORT_KEYS)),
    }
    bundle = {
        "generation": description,
        "logs": logs,
        "user_key": key,
        "champion": champion.model_dump(mode="json"),
        "profile": accepted_profile(registry, name),
        "splits": launched_splits(registry, name),
        "reward_models": reward_models,
        "earlier_pairs": pairs,
        "previous": None if previous is None else previous.model_dump(mode="json"),
        "params": (root / "params.yaml").read_text(encoding="utf-8"),
    }
    registry.put_generation(
        name, _BUNDLE, orjson.dumps(bundle, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
    )
    write_json(logs, root / INPUTS / "logs.json")
    write_users(root, key)
    write_json(bundle["profile"], root / INPUTS / "profile.json")
    write_json(bundle["splits"], root / INPUTS / "splits.json")
    reward_model_pin.pin(root, reward_models, place)
    _pin_pairs(root, pairs)
    _pin_settings_of_inputs(root, name, champion, previous)
    write_json(description, root / INPUTS / "generation.json")
    return name
