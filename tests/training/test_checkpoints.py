from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.training.checkpoints import SealCheckpoints, last_complete_checkpoint


def checkpoint(folder: Path, step: int, sealed: bool) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(f"weights of step {step}")
    if sealed:
        arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)
        SealCheckpoints().on_save(arguments, TrainerState(global_step=step), TrainerControl())
    return path


def test_the_newest_sealed_one_is_taken(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9, sealed=True)
    newest = checkpoint(tmp_path, 10, sealed=True)
    assert last_complete_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("damage", ["unsealed", "shorter", "missing file"])
def test_a_half_written_one_is_removed(tmp_path: Path, damage: str) -> None:
    whole = checkpoint(tmp_path, 2, sealed=True)
    broken = checkpoint(tmp_path, 4, sealed=damage != "unsealed")
    if damage == "shorter":
        (broken / "weights").write_text("weig")
    if damage == "missing file":
        (broken / "weights").unlink()
    assert last_complete_checkpoint(tmp_path) == whole
    assert not broken.exists()


def test_seals_of_removed_checkpoints_go_too(tmp_path: Path) -> None:
    first = checkpoint(tmp_path, 1, sealed=True)
    (first / "weights").unlink()
    first.rmdir()
    checkpoint(tmp_path, 2, sealed=True)
    assert [path.name for path in tmp_path.glob("complete-*")] == ["complete-checkpoint-2.json"]


def test_nothing_there_means_from_the_start(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
