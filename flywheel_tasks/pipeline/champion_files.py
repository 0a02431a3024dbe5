"""A champion's files in ``inputs/``: taken from DVC by the registry's hash, and checked by its digest."""

from pathlib import Path

from flywheel_tasks.pipeline import lineage, runner
from flywheel_tasks.pipeline.generation_ids import INPUTS, GenerationError
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef
from flywheel_tasks.storage.urls import shown

_FIRST = "base"  # the champion that no generation made


def refuse_other_base(champion: ModelRef, settings: Settings) -> None:
    """Refuse another ``base.policy`` than the one that a registry began with, while that is still its champion.

    The policy would go on from the old one, and the reward models alone be of the new one. Once a generation's model is
    champion, the setting is the reward models' alone, and may change.

    Args:
        champion: that a generation begins from.
        settings: of now.

    Raises:
        GenerationError: it is another.
    """
    if champion.generation == _FIRST and champion.data_version != settings.base.policy:
        raise GenerationError(
            f"base.policy is {settings.base.policy}, but the champion is still {champion.data_version}, which the "
            f"registry {shown(settings.registry.location)} began with: only the reward models would be of "
            f"{settings.base.policy}. Set base.policy back, or begin anew from it with another registry.location"
        )


def ensure_champion(root: Path) -> ModelRef:
    """The registry's champion; before the first launch, the base model is made and becomes it.

    Raises:
        GenerationError: see :func:`refuse_other_base`.
    """
    settings = load_settings(root / "params.yaml")
    registry = open_registry(settings.registry.location, root)
    champion = registry.state().champion
    if champion is None:
        runner.run(root, "base_model", push_outputs=False)
        out = lineage.dvc_output(root, "models/base")
        champion = ModelRef(
            generation=_FIRST,
            digest=tree_digest(root / "models/base"),
            dvc=DvcRef(path="models/base", md5=out["md5"]),
            code_version=lineage.code_version(root),
            data_version=settings.base.policy,
        )
        registry.bootstrap(champion, by="flywheel: first generation")
    refuse_other_base(champion, settings)
    return champion


def place_champion(root: Path, champion: ModelRef, name: str = "champion") -> None:
    """Put a champion's files at ``inputs/champion``, from DVC's cache or its remote, and check their digest.

    Files that are there already are only looked at, so it may be called at any time.

    Args:
        root: the workspace.
        champion: the model.
        name: of its folder in ``inputs/``: ``previous`` for the champion before.

    Raises:
        GenerationError: the registry has no DVC hash for it, or the files are not the champion.
        LostDataError: DVC has lost the files.
        StageFailedError: DVC cannot bring them now.
    """
    if champion.dvc is None:
        raise GenerationError(f"the registry has no DVC hash for {name} {champion.generation}")
    pointer, files = root / INPUTS / f"{name}.dvc", root / INPUTS / name
    text = runner.pointer(champion.dvc.md5, name)
    named = pointer.exists() and pointer.read_text(encoding="utf-8") == text
    if named and files.exists() and tree_digest(files) == champion.digest:
        return
    if not named:
        with atomic_path(pointer, synced=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    runner.bring(root, f"{INPUTS}/{name}.dvc")
    if (found := tree_digest(files)) != champion.digest:
        raise GenerationError(
            f"{INPUTS}/{name} is {found}, but the registry's {name} ({champion.generation}) is {champion.digest}"
        )
