"""Limits on KL and entropy: what warns, what stops, and which checkpoint a stopped run hands over."""

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.policy import rl
from flywheel_tasks.policy.drift import DriftWatch
from flywheel_tasks.settings import Limit, Watch

WATCH = Watch(kl=Limit(warn=0.2, stop=0.5), entropy=Limit(warn=1.0, stop=None))


def follow(watch: DriftWatch, steps: list[dict[str, float]]) -> int | None:
    """Step after which the run is told to stop."""
    for number, logs in enumerate(steps, start=1):
        control, state = TrainerControl(), TrainerState(global_step=number)
        watch.on_log(TrainingArguments(use_cpu=True, report_to="none"), state, control, logs)
        if control.should_training_stop:
            assert control.should_save
            return number
    return None


def test_a_warning_goes_on_and_a_stop_ends_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = [{"loss": 0.0, "kl": kl, "entropy": 2.0} for kl in (0.0, 0.1, 0.3, 0.4, 0.6, 0.0)]
    watch = DriftWatch(tmp_path, WATCH)
    with caplog.at_level(logging.WARNING):
        assert follow(watch, steps) == 5
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "rl",
        "rl",
    ]  # one warning, one stop
    again = DriftWatch(tmp_path, WATCH)  # after a kill
    assert again.stopped_at() == 5
    assert again.before() == 4  # the number of step 5 is that of the weights after step 4
    summary = again.summary(steps[:5])
    assert summary["kl"] == {"worst": 0.6, "last": 0.6, "steps_past_warning": 3}
    assert summary["stopped"] == "kl is 0.6, the limit is 0.5"


def test_a_stop_after_the_checkpoint_that_a_killed_run_goes_on_from_is_forgotten(tmp_path: Path) -> None:
    steps = [{"loss": 0.0, "kl": kl, "entropy": 2.0} for kl in (0.0, 0.6)]
    args = TrainingArguments(use_cpu=True, report_to="none")
    assert follow(DriftWatch(tmp_path, WATCH), steps) == 2
    for resumed, kept in ((2, 2), (1, None), (0, None)):
        again = DriftWatch(tmp_path, WATCH)
        again.on_train_begin(args, TrainerState(global_step=resumed), TrainerControl())
        assert again.stopped_at() == kept


def test_entropy_is_limited_from_below_and_a_number_that_is_none_stops(tmp_path: Path) -> None:
    low = Watch(kl=Limit(warn=None, stop=0.5), entropy=Limit(warn=None, stop=0.7))
    assert follow(DriftWatch(tmp_path, low), [{"loss": 0.0, "entropy": e} for e in (3.0, 0.8, 0.6)]) == 3
    nan = DriftWatch(tmp_path / "nan", low)
    (tmp_path / "nan").mkdir()
    assert follow(nan, [{"loss": 0.0, "kl": float("nan")}]) == 1


def test_without_limits_nothing_stops(tmp_path: Path) -> None:
    none = Limit(warn=None, stop=None)
    watch = DriftWatch(tmp_path, Watch(kl=none, entropy=none))
    assert follow(watch, [{"loss": 0.0, "kl": 99.0, "entropy": 0.0}]) is None
    assert (watch.stopped_at(), watch.before()) == (None, None)


def test_a_stopped_run_hands_over_a_checkpoint_from_before_and_stays_stopped(
    policy_io: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "rl.steps": 4,
        "rl.check_every": 1,
        "rl.learning_rate": 0.05,
        "rl.watch": {"kl": {"warn": None, "stop": 1e-9}, "entropy": {"warn": None, "stop": None}},
    }
    monkeypatch.setattr("flywheel_tasks.policy.safe_steps.over_optimised", lambda *checks: False)

    def dies(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rl, "merge_to_full", dies)
        with pytest.raises(KeyboardInterrupt):
            rl.run(policy_io("rl", settings))
    metrics = rl.run(policy_io("rl", settings))
    assert metrics["train"]["steps"] == 2  # the first step that can differ from the policy before it
    assert (
        metrics["checkpoint"]["step"] == 0
    )  # the check after step 1 is of the weights that passed the limit
    assert metrics["checkpoint"]["stopped_early"]
    assert metrics["train"]["drift"]["stopped"].startswith("kl is ")
    assert metrics["train"]["drift"]["kl"]["worst"] > 1e-9
