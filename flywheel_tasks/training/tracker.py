"""Where training runs are shown: TensorBoard files here, an MLflow server, or Weights & Biases.

Only numbers and the trainer's arguments leave, never a text; addresses and keys are those packages' own environment
variables. Nothing a tracker writes is an output of a stage, so the choice changes no output.
"""

import os
from importlib.util import find_spec

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from flywheel_tasks.pipeline.stage_io import STATE, StageIO

_PROJECT = "characterflywheel"
# The variable that names a project or experiment, where a team has not set it.
_PROJECT_VARIABLE = {"mlflow": "MLFLOW_EXPERIMENT_NAME", "wandb": "WANDB_PROJECT"}


class TrackerError(RuntimeError):
    """The tracker of the setting cannot be used; the message says what is missing."""


def _tensorboard(io: StageIO) -> TrainerCallback:
    callback = TensorBoardCallback()
    callback.logging_dir = str(io.root / STATE / "tensorboard" / io.run_name)
    return callback


def tracker_callbacks(io: StageIO) -> list[TrainerCallback]:
    """The callbacks of the setting ``training.tracker``; runs are named by generation and stage.

    Raises:
        TrackerError: the tracker's package is not installed.
    """
    tracker = io.tracker
    if tracker == "none":
        return []
    if find_spec(tracker) is None:
        raise TrackerError(
            f"training.tracker: {tracker} needs the package {tracker}: pip install 'characterflywheel[{tracker}]', "
            "or another tracker (tensorboard, none)"
        )
    if tracker == "tensorboard":
        return [_tensorboard(io)]
    os.environ.setdefault(_PROJECT_VARIABLE[tracker], _PROJECT)
    return [MLflowCallback() if tracker == "mlflow" else WandbCallback()]
