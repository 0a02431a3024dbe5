import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.training.checkpoints import last_complete_checkpoint
from flywheel_tasks.training.run import TrainingError, train, trainer_arguments, warmup_steps

ROWS = 24


class Line(nn.Module):
    """y = w x + b; the loss of a chosen step can be spoilt."""

    def __init__(self, spoil_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.calls = 0
        self.spoil_at = spoil_at

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = ((self.weight * x + self.bias - y) ** 2).mean()
        return {"loss": loss * torch.nan if self.calls == self.spoil_at else loss}


def inputs_of_reward_model(root: Path) -> None:
    """Empty inputs: these runs read none."""
    for dep in ("models/base", "data/preferences", "inputs/earlier_pairs"):
        (root / dep).mkdir(parents=True, exist_ok=True)
    write_json({}, root / "inputs/reward_models.json")


@pytest.fixture
def io(make_io: Callable[..., Any], tmp_path: Path) -> Any:
    inputs_of_reward_model(tmp_path)
    return make_io("train_pointwise_rm", tmp_path, {"compute.precision": "float32"})


XS = [(7 * k % ROWS) / ROWS for k in range(ROWS)]


def trainer(io: Any, model: nn.Module, learning_rate: float = 0.3) -> Trainer:
    rows = [{"x": torch.tensor([x]), "y": torch.tensor([2 * x + 1])} for x in XS]
    arguments = trainer_arguments(io, learning_rate, 4, ROWS // 4, remove_unused_columns=False)
    return Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=rows)


def test_trains_and_writes_one_curve_row_a_step(io: Any, tmp_path: Path) -> None:
    model = Line()
    metrics = train(trainer(io, model), io, curve=tmp_path / "curve.csv", must_move=("weight", "bias"))
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert set(rows[0]) == {"step", "loss", "grad_norm", "learning_rate"}
    assert float(rows[0]["loss"]) == pytest.approx(metrics["loss_first"], rel=1e-4)
    assert metrics["loss_last"] < metrics["loss_first"]
    assert (metrics["steps"], metrics["trainable_parameters"], metrics["moved_share"]) == (6, 2, 1.0)
    assert torch.equal(model.frozen.cpu(), torch.ones(1))


def test_a_short_run_loses_no_step_to_a_warm_up_and_a_long_one_has_a_ramp(io: Any) -> None:
    assert [warmup_steps(steps) for steps in (1, 20, 27, 39, 40, 200)] == [0, 0, 0, 0, 2, 10]
    for steps, first in ((27, 0.3), (200, 0.0)):
        arguments = TrainingArguments(**trainer_arguments(io, 0.3, 4, steps))
        run = Trainer(model=Line(), args=arguments)
        run.create_optimizer_and_scheduler(steps)
        assert run.lr_scheduler is not None
        assert run.lr_scheduler.get_last_lr()[0] == pytest.approx(first)


def test_rows_come_in_the_order_given(io: Any, tmp_path: Path) -> None:
    seen: list[float] = []
    model = Line()
    model.register_forward_pre_hook(
        lambda module, args, kw: seen.extend(kw["x"].flatten().tolist()), with_kwargs=True
    )
    train(trainer(io, model), io, curve=tmp_path / "curve.csv")
    assert seen == pytest.approx(XS)


def test_a_loss_that_is_not_a_number_stops_the_run(io: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="step 3: loss is nan"):
        train(trainer(io, Line(spoil_at=3)), io, curve=tmp_path / "curve.csv")
    assert not (tmp_path / "curve.csv").exists()


def test_steps_left_out_are_an_error(io: Any, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 4

    stopped = trainer(io, Line())
    stopped.add_callback(Stop())
    with pytest.raises(TrainingError, match="4 steps were done, 6 were planned"):
        train(stopped, io, curve=tmp_path / "curve.csv")


def test_training_that_changes_nothing_is_an_error(io: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="changed no parameter"):
        train(trainer(io, Line(), learning_rate=0.0), io, curve=tmp_path / "curve.csv")


def test_a_named_part_that_does_not_move_is_an_error(io: Any, tmp_path: Path) -> None:
    model = Line()
    model.register_parameter(
        "score", nn.Parameter(torch.zeros(1))
    )  # in no loss: the untrained head of trl#2743
    with pytest.raises(TrainingError, match="named score"):
        train(trainer(io, model), io, curve=tmp_path / "curve.csv", must_move=("score",))


def test_nothing_to_train_is_an_error(io: Any, tmp_path: Path) -> None:
    model = Line()
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter can be trained"):
        train(trainer(io, model), io, curve=tmp_path / "curve.csv")


def test_a_run_killed_after_its_last_step_is_not_done_again(io: Any, tmp_path: Path) -> None:
    first = Line()
    train(trainer(io, first), io, curve=tmp_path / "first.csv")
    again = Line()
    train(trainer(io, again), io, curve=tmp_path / "again.csv")
    assert again.calls == 0
    assert torch.equal(again.weight, first.weight)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "first.csv").read_text()


def test_a_changed_setting_does_not_resume(io: Any, make_io: Callable[..., Any], tmp_path: Path) -> None:
    train(trainer(io, Line()), io, curve=tmp_path / "curve.csv")
    assert last_complete_checkpoint(io.resume_dir()) is not None
    changed = make_io(
        "train_pointwise_rm", tmp_path, {"compute.precision": "float32", "pointwise_rm.epochs": 9.0}
    )
    assert last_complete_checkpoint(changed.resume_dir()) is None
    model = Line()
    train(trainer(changed, model), changed, curve=tmp_path / "curve.csv")
    assert model.calls == ROWS // 4


def test_the_first_loss_is_the_models_own(io: Any, tmp_path: Path) -> None:
    train(trainer(io, Line()), io, curve=tmp_path / "curve.csv")
    first = next(csv.DictReader((tmp_path / "curve.csv").open()))
    expected = sum((2 * x + 1) ** 2 for x in XS[:4]) / 4
    assert math.isclose(float(first["loss"]), expected, rel_tol=1e-5)
