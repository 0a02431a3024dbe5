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
    assert again.before(6) == 4  # the number of step 5 is that of the weights after step 4
    summary = again.summary(steps[:5])
    assert summary["kl"] == {"worst": 0.6, "last": 0.6, "after_last": None, "steps_past_warning": 3}
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
    assert (watch.stopped_at(), watch.before(1)) == (None, None)


@pytest.mark.parametrize(("kl", "before"), [(0.4, None), (0.6, 3), (float("nan"), 3), (None, 3)])
def test_the_weights_after_the_last_step_are_measured_too(
    tmp_path: Path, kl: float | None, before: int | None
) -> None:
    """No step logs them; where a limit could stop a run, unmeasured ones are not handed over."""
    watch, args = DriftWatch(tmp_path, WATCH), TrainingArguments(use_cpu=True, report_to="none")
    if kl is not None:
        watch.measure = lambda: {"kl": kl, "entropy": 2.0}
    for step in (1, 2, 3):
        watch.on_step_end(args, TrainerState(global_step=step, max_steps=3), TrainerControl())
    again = DriftWatch(tmp_path, WATCH)  # after a kill
    again.on_train_begin(args, TrainerState(global_step=3), TrainerControl())
    assert (again.stopped_at(), again.before(3)) == (None, before)
    again.on_train_begin(args, TrainerState(global_step=2), TrainerControl())
    assert again.before(3) == 3, "of weights that are gone"


@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_a_last_step_that_passes_a_limit_is_not_handed_over(
    policy_io: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The one step of this run logs the policy before it, whose KL is 0: only its own measure shows the step."""
    monkeypatch.setattr("flywheel_tasks.policy.safe_steps.over_optimised", lambda *checks: False)
    monkeypatch.setattr(
        "flywheel_tasks.policy.safe_steps.Check.expected_win_rate", lambda self: 0.5 + self.step
    )
    settings = {
        "rl.method": method,
        "rl.steps": 1,
        "rl.check_every": 1,
        "rl.learning_rate": 0.05,
        "rl.target_win_rate": 1.0,
        "rl.watch": {"kl": {"warn": None, "stop": 1e-9}, "entropy": {"warn": None, "stop": None}},
    }
    metrics = rl.run(policy_io("rl", settings))
    drift = metrics["train"]["drift"]
    assert drift["stopped"] is None
    assert drift["kl"]["worst"] < 1e-9 < drift["kl"]["after_last"]
    assert metrics["checkpoint"]["step"] == 0


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
