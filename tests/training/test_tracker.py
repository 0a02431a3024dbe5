"""Where a run is shown: files of TensorBoard named by generation and stage, or an error that names the package."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.training import tracker
from flywheel_tasks.training.run import train
from flywheel_tasks.training.tracker import TrackerError, tracker_callbacks
from tests.training.test_run import Line, inputs_of_reward_model, trainer


@pytest.fixture
def io_of(make_io: Any, tmp_path: Path) -> Any:
    def make(name: str) -> Any:
        inputs_of_reward_model(tmp_path)
        write_json({"generation": "g0007"}, tmp_path / "inputs/generation.json")
        settings = {"compute.precision": "float32", "training.tracker": name}
        return make_io("train_pointwise_rm", tmp_path, settings)

    return make


def test_tensorboard_gets_every_step_under_the_generation_and_the_stage(io_of: Any, tmp_path: Path) -> None:
    io = io_of("tensorboard")
    made = trainer(io, Line())
    assert made.args.run_name == "g0007-train_pointwise_rm"
    train(made, io, curve=tmp_path / "curve.csv")
    shown = EventAccumulator(str(tmp_path / ".flywheel/tensorboard/g0007-train_pointwise_rm")).Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_none_writes_nothing(io_of: Any, tmp_path: Path) -> None:
    io = io_of("none")
    train(trainer(io, Line()), io, curve=tmp_path / "curve.csv")
    assert not (tmp_path / ".flywheel/tensorboard").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(io_of: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda package: None)
    with pytest.raises(
        TrackerError, match=rf"{name} needs the package {name}: pip install 'characterflywheel\[{name}\]'"
    ):
        tracker_callbacks(io_of(name))


def test_the_tracker_changes_no_fingerprint(io_of: Any) -> None:
    assert io_of("none").fingerprint() == io_of("tensorboard").fingerprint()
