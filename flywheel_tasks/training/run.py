"""One training run: resumes after a kill, stops on bad numbers, and proves that it trained."""

import copy
import csv
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from accelerate import DistributedType
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from flywheel_tasks.pipeline.launcher import (
    PATIENCE,
    OtherProcessDone,
    main_first,
    process,
    processes,
    wait_for_all,
)
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.training.checkpoints import SealCheckpoints, last_complete_checkpoint
from flywheel_tasks.training.cpu_steps import fast_steps
from flywheel_tasks.training.precision import repeatable, resolve_dtype
from flywheel_tasks.training.progress import ShowProgress
from flywheel_tasks.training.tracker import tracker_callbacks

_log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training run did not do what was planned; the message says what."""


def _per_process(batch_size: int) -> int:
    """Rows of a step in each process: the step's rows do not depend on how many processes there are."""
    each, left = divmod(batch_size, processes())
    if left:
        raise TrainingError(f"a step of {batch_size} rows cannot be shared by {processes()} processes evenly")
    return each


def warmup_steps(steps: int) -> int:
    """Steps of the warm-up: a twentieth of the run, none where that would be a single one.

    The first step of a warm-up has a rate of 0 and learns nothing, so one of a single step is no ramp, only a loss.

    Args:
        steps: optimiser steps of the whole run.
    """
    return steps // 20 if steps >= 40 else 0


def trainer_arguments(
    io: StageIO, learning_rate: float, batch_size: int, steps: int, **overrides: Any
) -> dict[str, Any]:
    """Keyword arguments of ``transformers.TrainingArguments`` (and TRL's configs) that every stage shares.

    Rows are taken in the order given (see :mod:`flywheel_tasks.training.order`); checkpoints go to
    ``io.resume_dir()`` a few times a run; the weights stay float32 and bfloat16, where it is used, is
    autocast.

    Args:
        io: the stage; it must declare ``seed`` and ``compute``.
        learning_rate: peak of a cosine schedule with a short warm-up (see :func:`warmup_steps`).
        batch_size: rows a step, of all processes together.
        steps: optimiser steps of the whole run.
        overrides: replace or add arguments.
    """
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(io.resume_dir()),
        "max_steps": steps,
        "num_train_epochs": 1,
        "per_device_train_batch_size": _per_process(batch_size),
        "per_device_eval_batch_size": _per_process(batch_size),
        "ddp_timeout": int(PATIENCE.total_seconds()),
        "train_sampling_strategy": "sequential",
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup_steps(steps),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": io.settings.seed,
        "data_seed": io.settings.seed,
        "use_cpu": not cuda,
        "bf16": resolve_dtype(io.settings.compute) == torch.bfloat16,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": cuda,
        "save_strategy": "steps",
        "save_steps": max(1, min(10, steps // 4)),
        "save_total_limit": 2,  # the older one is there while the newer is written
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a NaN behind earlier losses
        "disable_tqdm": True,
        "report_to": "none",  # the tracker is a callback of its own: see flywheel_tasks.training.tracker
        "run_name": io.run_name,
    } | overrides


class _StopOnBadNumbers(TrainerCallback):
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        for key in ("loss", "grad_norm", "reward"):
            if logs and key in logs and not math.isfinite(logs[key]):
                raise TrainingError(f"step {state.global_step}: {key} is {logs[key]}; the run is stopped")


def _parameters(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    assert trainer.model is not None
    return dict(trainer.model.named_parameters())


def _snapshot(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().cpu().clone()
        for name, value in _parameters(trainer).items()
        if value.requires_grad
    }


def _moved(trainer: Trainer, before: Mapping[str, torch.Tensor]) -> list[str]:
    after = _parameters(trainer)
    return [
        name
        for name, value in before.items()
        if not torch.equal(value, after[name].detach().cpu().to(value.dtype))
    ]


def write_curve(rows: Sequence[Mapping[str, float]], columns: Sequence[str], path: Path) -> None:
    """Write a curve as CSV: ``step`` and the columns that a row has, in six digits; others stay empty.

    Args:
        rows: each with ``step``.
        columns: what else to write.
        path: of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns], restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {key: f"{row[key]:.6g}" for key in columns if key in row}
            writer.writerow({"step": int(row["step"])} | shown)


def _sharded(trainer: Trainer) -> bool:
    return trainer.accelerator.distributed_type == DistributedType.FSDP


def _gather(trainer: Trainer, whole: torch.nn.Module | None) -> None:
    """Give the main process the whole trained model, and end the others: there is no work left to share.

    Args:
        trainer: after training.
        whole: a copy of the model from before it was sharded, in the main process; None where nothing was sharded.
    """
    if processes() == 1:
        return
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if _sharded(trainer) else {}
    wait_for_all()
    if process() != 0:
        raise OtherProcessDone
    if whole is not None:
        whole.load_state_dict(weights)
        trainer.model = whole


def without_autocast(trainer: Trainer) -> None:
    """Take mixed precision off the trained model: what it answers from here on is as exact as its weights.

    accelerate wraps ``forward`` in autocast for good, so a check of the saved model against the trained one would
    compare bfloat16 with float32.
    """
    trainer.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _fast_steps(trainer: Trainer, longest: int | None) -> AbstractContextManager[None]:
    assert trainer.model is not None
    rows = trainer.args.per_device_train_batch_size
    return fast_steps(trainer.model, bfloat16=trainer.args.bf16, rows=rows, longest=longest)


def _restore(trainer: Trainer, checkpoint: Path) -> None:
    """Weights and history of a run that was ended on purpose at this checkpoint, without training on."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    trainer._load_from_checkpoint(str(checkpoint))


def train(
    trainer: Trainer,
    io: StageIO,
    *,
    curve: Path,
    columns: Sequence[str] = ("loss", "grad_norm", "learning_rate"),
    longest_row: int | None = None,
    planned_steps: int | None = None,
    must_move: Sequence[str] = (),
    stopped_at: Callable[[], int | None] = lambda: None,
) -> dict[str, Any]:
    """Run a (TRL) trainer to its end, from the last complete checkpoint if an earlier run was killed.

    Checkpoints live in ``io.resume_dir()``, which belongs to these very inputs, settings and code; another
    run never resumes from them. transformers reads them back with ``weights_only`` loading. A killed and
    resumed run ends with the same weights and the same curve as an uninterrupted one, given
    :func:`trainer_arguments`. Of several processes, the main one alone returns from here.

    Args:
        trainer: ready to train, with arguments from :func:`trainer_arguments`. It must be built the same way
            in every run (set the seed before creating new weights), because movement is measured from its
            present weights.
        io: the stage.
        curve: CSV to write: ``step`` and ``columns``, one row a step; no times.
        columns: keys of the trainer's log.
        longest_row: most tokens of a row, on which it depends how a CPU computes attention.
        planned_steps: optimiser steps that must be done; by default the ``max_steps`` of the arguments.
        must_move: parts of parameter names that must have changed, such as ``score`` for a new head.
        stopped_at: the step at which a callback has ended the run on purpose, or None; asked before the run (a
            killed one may have been ended already) and after it.

    Returns:
        ``steps``, ``trainable_parameters``, ``moved_share`` (of trainable tensors), ``loss_first`` and
        ``loss_last`` (means over the first and the last fifth of the steps).

    Raises:
        TrackerError: the tracker's package is missing.
        TrainingError: a loss, gradient or reward is not finite, steps were left out or repeated, nothing
            moved, or nothing can be trained.
    """
    planned = planned_steps if planned_steps is not None else trainer.args.max_steps
    if planned <= 0:
        raise TrainingError("no step is planned: is the training set empty?")
    before = _snapshot(trainer)
    if not before:
        raise TrainingError("no parameter can be trained")
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    trainer.remove_callback(PrinterCallback)
    shown = (ShowProgress(io.stage.name), *tracker_callbacks(io))
    for callback in (_StopOnBadNumbers(), SealCheckpoints(), *shown):
        trainer.add_callback(callback)
    with main_first():
        checkpoint = last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    if checkpoint is not None:
        _log.info("%s: resuming from %s", io.stage.name, checkpoint.name)
    whole = copy.deepcopy(trainer.model) if _sharded(trainer) and process() == 0 else None
    if checkpoint is not None and checkpoint.name == f"checkpoint-{stopped_at()}":
        _restore(trainer, checkpoint)  # resuming would do one step more
    else:
        with repeatable(), _fast_steps(trainer, longest_row):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    _gather(trainer, whole)
    without_autocast(trainer)
    planned = stopped_at() or planned
    if trainer.state.global_step != planned:
        raise TrainingError(f"{trainer.state.global_step} steps were done, {planned} were planned")
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]  # summaries have other keys
    write_curve(steps, columns, curve)
    if len(steps) != planned:
        raise TrainingError(
            f"the log has {len(steps)} steps, {planned} were done: some were left out or repeated"
        )
    moved = _moved(trainer, before)
    unmoved = [part for part in must_move if not any(part in name for name in moved)]
    if not moved or unmoved:
        raise TrainingError(
            f"training changed no parameter{' named ' + ', '.join(unmoved) if unmoved else ''}"
        )
    losses = [entry["loss"] for entry in steps]
    fifth = max(1, len(losses) // 5)
    return {
        "steps": planned,
        "trainable_parameters": sum(value.numel() for value in before.values()),
        "moved_share": len(moved) / len(before),
        "loss_first": sum(losses[:fifth]) / fifth,
        "loss_last": sum(losses[-fifth:]) / fifth,
    }
