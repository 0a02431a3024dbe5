"""Opens a generation: pins what it starts from, the champion and the newest logs, into ``inputs/``.

``inputs/generation.json`` names the generation, ``inputs/logs.json`` its log partitions with their digests,
``inputs/users.json`` the key of user ids by its fingerprint, ``inputs/champion.dvc`` the champion's files by DVC hash,
``inputs/pool.json`` and ``inputs/rejection_pool.json`` the policies that candidates come from, ``inputs/labels.json``
the labels that people have delivered, ``inputs/profile.json`` holds the profile of the data of the last accepted
generation, which new data is compared with, ``inputs/splits.json`` how earlier launched generations were split, and
``inputs/reward_models.json`` the reward models of the last launched one, which the new ones go on from, and
``inputs/earlier_pairs/`` the preference pairs of the launched ones, which the new ones learn from too.
They are the roots of the data graph. The registry keeps a copy, written once, so that any worker (and anyone, later)
can start from exactly the same.
One thing is never what it was: users who have asked to be forgotten since are forgotten in every generation, older
ones too.
"""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.annotation.delivery import PIN, pin_labels
from flywheel_tasks.pipeline import earlier_pairs, reward_model_pin
from flywheel_tasks.pipeline.champion_files import ensure_champion, place_champion, refuse_other_base
from flywheel_tasks.pipeline.generation_ids import (
    INPUTS,
    BusyError,
    GenerationError,
    before,
    current,
    held_instead,
    leave,
    next_id,
    number_of,
)
from flywheel_tasks.pipeline.generation_lock import dvc_is_at_work, generation_lock, undisturbed
from flywheel_tasks.pipeline.params_file import check_params, write_setting
from flywheel_tasks.pipeline.pinned_data import (
    NO_PROFILE,
    NO_SPLITS,
    accepted_profile,
    launched_splits,
    launched_styles,
    pinned_logs,
)
from flywheel_tasks.pipeline.pool_pin import REJECTION_PIN, pin_pool
from flywheel_tasks.pipeline.whose_logs import BUNDLE, bundle_of, logs_of, refuse_mixing, refuse_other_logs
from flywheel_tasks.settings import Settings, SettingsError, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.forgotten import open_forgotten
from flywheel_tasks.storage.registry import Registry, open_registry
from flywheel_tasks.storage.registry_state import ModelRef
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, IdentityError, pin_users, user_key

_log = logging.getLogger(__name__)


def newest_key(registry: Registry) -> tuple[str, str] | None:
    """The newest generation and the fingerprint of its key for user ids; None where there is no generation."""
    generations = registry.generations()
    if not generations:
        return None
    bundle = bundle_of(registry, generations[-1])
    return generations[-1], bundle.get("user_key", DEMO_FINGERPRINT)


def _key_of(root: Path, registry: Registry) -> str:
    """The fingerprint of the environment's key for user ids, which must be that of the generation before."""
    settings = load_settings(root / "params.yaml")
    found = user_key(settings.logs.source).fingerprint
    earlier = newest_key(registry)
    # From simulated users to real ones nobody moves: they are other people.
    if earlier is not None and earlier[1] not in (found, DEMO_FINGERPRINT):
        raise IdentityError(
            f"the key for user ids is {found}, but {earlier[0]} used {earlier[1]}: users would move between training "
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
    _pin(root, "users.json", document)


def _pin(root: Path, name: str, document: Any) -> None:
    """Write a document of ``inputs/``, unless it is what stands there: DVC need not look at it again."""
    path = root / INPUTS / name
    if not path.exists() or read_json(path) != document:
        write_json(document, path)


def _restore(root: Path, registry: Registry, generation: str, *, params: bool) -> None:
    """Write ``inputs/`` (and params.yaml) as the registry keeps them, also where ``inputs/`` names this generation.

    The opening of another one may have been killed after it had begun to write. The generation's name is written last,
    and another's is removed first: what has a name is whole.
    """
    bundle = bundle_of(registry, generation)
    if "user_key" not in bundle:
        raise GenerationError(
            f"{generation} was opened by an earlier version, whose tables hold raw user ids: open a new generation"
        )
    others = params and (root / "params.yaml").read_text(encoding="utf-8") != bundle["params"]
    if others:
        try:  # before anything is changed
            check_params(root, bundle["params"])
        except SettingsError as error:
            raise GenerationError(
                f"{generation} was opened by another release, whose params.yaml this one cannot read: {error}. "
                "Go on with that release, or open a new generation"
            ) from error
    leave(root, generation)
    if others:
        with atomic_path(root / "params.yaml", synced=True) as temporary:
            temporary.write_text(bundle["params"], encoding="utf-8")
    champion, previous = ModelRef.model_validate(bundle["champion"]), bundle.get("previous")
    _pin(root, "logs.json", bundle["logs"])
    # A release that pinned none of these opened it: as before the first launch.
    _pin(root, "profile.json", bundle.get("profile", NO_PROFILE))
    _pin(root, "splits.json", bundle.get("splits", NO_SPLITS))
    write_users(root, bundle["user_key"])
    place_champion(root, champion)
    _pin_reward_models(root, bundle.get("reward_models"))
    _pin_pairs(root, bundle.get("earlier_pairs", []))
    _pin_settings_of_inputs(
        root, generation, champion, None if previous is None else ModelRef.model_validate(previous)
    )
    # A release that did not say whose logs they are may have opened it.
    _pin(root, "generation.json", {"logs_source": logs_of(bundle)["source"]} | bundle["generation"])


def _pin_settings_of_inputs(
    root: Path, generation: str, champion: ModelRef, previous: ModelRef | None
) -> None:
    """Pin what the settings name: the pools of policies, and the labels that people have delivered so far."""
    settings = load_settings(root / "params.yaml")
    place = partial(place_champion, root)
    pin_pool(root, settings.annotation_batch.pool, champion, previous, place)
    pin_pool(root, settings.rejection_sample.pool, champion, previous, place, REJECTION_PIN)
    pin_labels(settings.label, generation, root)


def _forgotten(root: Path) -> list[str]:
    found: list[str] = read_json(root / INPUTS / "users.json")["forgotten"]
    return found


def _pin_reward_models(root: Path, found: dict[str, Any] | None) -> None:
    reward_model_pin.pin(root, found, partial(place_champion, root), _forgotten(root))


def _pin_pairs(root: Path, found: list[dict[str, Any]]) -> None:
    """Put the pairs of earlier launched generations in place, as many as a reward model asks for."""
    settings = load_settings(root / "params.yaml")
    sections = (settings.pointwise_rm, settings.pairwise_rm)
    most = max(section.earlier_pairs.generations for section in sections)
    earlier_pairs.pin(root, found, most, _forgotten(root), partial(place_champion, root))


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


def take_labels(root: Path, pinned: dict[str, Any]) -> None:
    """Pin the labels that were pinned elsewhere, where a run's stage ``label`` has read them.

    Args:
        root: the workspace.
        pinned: of :func:`refresh_labels`.
    """
    _pin(root, Path(PIN).name, pinned)


def sync(root: Path, generation: str) -> None:
    """Bring a worker's ``inputs/`` and params.yaml to what a generation was opened with.

    Raises:
        BusyError: DVC is at work here: nothing is changed under it.
        RegistryError: the registry does not know the generation.
    """
    with undisturbed(root, generation):
        _sync(root, generation)


def _sync(root: Path, generation: str) -> None:
    settings = load_settings(root / "params.yaml")
    _restore(root, open_registry(settings.registry.location, root), generation, params=True)


def hold(root: Path, generation: str, seed: int | None = None) -> None:
    """See that ``inputs/`` holds a generation; a worker may have been left with another one, and is then synced.

    The seed is looked at in any case: a kill, or another run of the generation, may have left another one.

    Args:
        root: the workspace.
        generation: that is to be worked on.
        seed: that it is worked on with, where it is not the one it was opened with.

    Raises:
        BusyError: DVC works on another generation here, or with another seed: nothing is changed under it.
        GenerationError: it was opened by too old a version, or its champion's files are not what they should be.
        RegistryError: the registry does not know it.
        StageFailedError: DVC does not bring its champion.
    """
    with generation_lock(root):
        instead = held_instead(root, generation)
        if instead is None and seed in (None, load_settings(root / "params.yaml").seed):
            return
        if dvc_is_at_work(root):
            other = f"not {generation}" if instead else f"with a seed that is not {seed}"
            raise BusyError(f"{root} holds {instead or generation}, {other}, and DVC is at work on it")
        if instead:
            _log.warning("%s holds %s; bringing %s from the registry", root, instead, generation)
            _sync(root, generation)
        if seed is not None:
            write_setting(root, "seed", seed)


def open_generation(root: Path, *, generation: str | None = None, seed: int | None = None) -> str:
    """Open a generation, or return to one that was opened before.

    Args:
        root: the workspace.
        generation: its id; by default the next one.
        seed: written into params.yaml first.

    Returns:
        the generation's id.

    Raises:
        BusyError: DVC is at work here: nothing is changed under it.
        GenerationError: the id is malformed, there are no logs, the champion's files are not what they should be, it
            was opened with other logs than the settings name now, or real users would be mixed with simulated ones.
        PromptError: a new one, and a named set that it learns is missing or has a bad row.
    """
    with undisturbed(root, generation):  # who is forgotten meanwhile would be in what is pinned
        return _open(root, generation, seed)


def _earlier_logs(registry: Registry, generation: str) -> Iterator[dict[str, Any]]:
    """What the generations before one pinned, the newest first."""
    for item in before(registry, generation):
        kept = registry.find_generation(item, BUNDLE)
        if kept is not None and (logs := orjson.loads(kept).get("logs")):
            yield logs


def _open(root: Path, generation: str | None, seed: int | None) -> str:
    from flywheel_tasks.policy.named_sets import read_sets  # takes a while to import

    settings: Settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    name = generation or next_id(root, registry)
    number_of(name)
    if name in registry.generations():
        bundle = bundle_of(registry, name)
        refuse_other_logs(name, bundle, settings)
        refuse_other_base(ModelRef.model_validate(bundle["champion"]), settings)
        _restore(root, registry, name, params=False)
        if seed is not None:
            write_setting(root, "seed", seed)
        return name
    refuse_mixing(root, registry, name, settings)
    # The stages that learn them come after people's labels.
    read_sets(root / "sets", sorted({*settings.sft.sets, *settings.dpo.sets}))
    if seed is not None:
        write_setting(root, "seed", seed)
    key = _key_of(root, registry)
    logs = pinned_logs(settings, root, _earlier_logs(registry, name))
    champion = ensure_champion(root)
    leave(root, name)
    place_champion(root, champion)
    previous = registry.state().previous
    place = partial(place_champion, root)
    reward_models = reward_model_pin.launched(registry, before(registry, name), place)
    pairs = earlier_pairs.launched(registry, before(registry, name))
    description = {
        "generation": name,
        "champion": {"model": champion.generation, "digest": champion.digest},
        "logs_source": settings.logs.source,
        "logs_digest": bytes_digest(orjson.dumps(logs, option=orjson.OPT_SORT_KEYS)),
        "styles_before": launched_styles(registry, name),
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
        name, BUNDLE, orjson.dumps(bundle, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
    )
    write_json(logs, root / INPUTS / "logs.json")
    write_users(root, key)
    write_json(bundle["profile"], root / INPUTS / "profile.json")
    write_json(bundle["splits"], root / INPUTS / "splits.json")
    _pin_reward_models(root, reward_models)
    _pin_pairs(root, pairs)
    _pin_settings_of_inputs(root, name, champion, previous)
    write_json(description, root / INPUTS / "generation.json")
    return name
