"""Which checkpoint a killed training run may resume from."""

import logging
import re
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.pipeline.launcher import wait_for_all
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import DocumentError, read_json, write_json

_log = logging.getLogger(__name__)
_FOLDER = re.compile(r"checkpoint-(\d+)")


def _seal(folder: Path) -> Path:
    return folder.with_name(f"complete-{folder.name}.json")


class SealCheckpoints(TrainerCallback):
    """Writes, after a checkpoint is whole, the digest of its files beside it.

    transformers writes a checkpoint file by file; one without a seal was interrupted.
    """

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seal the newest checkpoint; forget seals of those that were rotated away."""
        wait_for_all()  # each process writes a part
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        write_json({"digest": tree_digest(folder)}, _seal(folder))
        for seal in folder.parent.glob("complete-checkpoint-*.json"):
            if not (folder.parent / seal.stem.removeprefix("complete-")).is_dir():
                seal.unlink()


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; newer ones that are not are removed.

    Args:
        folder: the trainer's output folder.

    Returns:
        the checkpoint's folder, or None to start from the beginning.
    """
    found = sorted(
        (int(match.group(1)), path)
        for path in folder.glob("checkpoint-*")
        if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()
    )
    for _, path in reversed(found):
        try:
            if read_json(_seal(path))["digest"] == tree_digest(path):
                return path
        except (FileNotFoundError, DocumentError):
            pass
        _log.warning("%s was not finished when its run ended; removed", path)
        shutil.rmtree(path)
        _seal(path).unlink(missing_ok=True)
    return None
