"""Finds a registered model's files on this machine: in the workspace, else from DVC's cache or its remote."""

import logging
from pathlib import Path

from filelock import FileLock

from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.stage_io import locks_of
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.registry_state import ModelRef

# Where a workspace has models, the most likely place first.
_PLACES = ("inputs/champion", "models/policy", "models/base")
_log = logging.getLogger(__name__)


class ModelFilesError(RuntimeError):
    """A model's files are not here, and DVC does not bring them now."""


class ModelLostError(ModelFilesError):
    """DVC does not have a model's files, or has others under their hash: they will not come another time."""


def model_folder(root: Path, model: ModelRef) -> Path:
    """The folder of a model; its contents are what the registry says.

    Args:
        root: the workspace.
        model: which one.

    Raises:
        ModelFilesError: it is nowhere.
    """
    # DVC takes no pointer from an ignored folder, so not below .flywheel.
    kept = root / "inputs" / f"served-{model.digest.removeprefix('sha256:')[:16]}"
    with FileLock(locks_of(root) / "models.lock"):
        for place in (kept, *(root / name for name in _PLACES)):
            if place.is_dir() and tree_digest(place) == model.digest:
                return place
        _bring(root, kept, model)
    if (found := tree_digest(kept)) != model.digest:
        raise ModelLostError(f"{kept} is {found}, the registry says {model.digest}")
    return kept


def _bring(root: Path, kept: Path, model: ModelRef) -> None:
    """Have DVC place a model's files, by their hash."""
    if model.dvc is None:
        raise ModelLostError(
            f"model {model.generation} is not on this machine, and the registry has no DVC hash for it"
        )
    _log.warning("model %s comes from DVC", model.generation)
    pointer = kept.with_name(f"{kept.name}.dvc")
    with atomic_path(pointer) as temporary:
        temporary.write_text(runner.pointer(model.dvc.md5, kept.name), encoding="utf-8")
    target = str(pointer.relative_to(root))
    try:
        runner.bring(root, target)
    except runner.LostDataError as error:
        raise ModelLostError(f"model {model.generation}: DVC has lost it: {error}") from error
    except runner.StageFailedError as error:
        raise ModelFilesError(f"model {model.generation}: DVC does not bring it: {error}") from error
    finally:
        pointer.unlink()
