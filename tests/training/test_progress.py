import re
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.training import progress
from flywheel_tasks.training.progress import ShowProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def told(shown: ShowProgress, event: str, step: int, of: int = 10, **logs: Any) -> None:
    state = TrainerState(global_step=step, max_steps=of, num_input_tokens_seen=logs.pop("seen", 0))
    state.is_world_process_zero = logs.pop("main", True)
    arguments = TrainingArguments(use_cpu=True, report_to="none")
    getattr(shown, event)(arguments, state, TrainerControl(), **({"logs": logs} if event == "on_log" else {}))


def test_a_line_has_step_loss_reward_tokens_a_second_and_time_left(clock: Any, capsys: Any) -> None:
    shown = ShowProgress("rl", seconds=5.0)
    told(shown, "on_train_begin", 0)
    clock[0] += 6
    told(shown, "on_log", 2, loss=0.25, reward=1.5, num_tokens=1200)
    clock[0] += 1
    told(shown, "on_log", 3, loss=0.2, reward=1.6, num_tokens=1500)  # too soon for another line
    clock[0] += 1
    told(shown, "on_log", 10, loss=0.1, reward=2.0, num_tokens=4000)  # the last step always shows
    assert lines(capsys) == [
        "rl: step 2/10, loss 0.2500, reward 1.500, 200 tokens/s, 24 s left",
        "rl: step 10/10, loss 0.1000, reward 2.000, 500 tokens/s, 0 s left",
    ]


def test_a_resumed_run_counts_its_own_tokens_and_steps(clock: Any, capsys: Any) -> None:
    shown = ShowProgress("rl", seconds=5.0)
    told(shown, "on_train_begin", 6, seen=6000)
    clock[0] += 10
    told(shown, "on_log", 8, loss=0.1, num_tokens=8000)
    first, second = lines(capsys)
    assert first == "rl: resumes after step 6 of 10"
    assert re.search(r"200 tokens/s, 10 s left$", second)


def test_other_processes_are_silent(clock: Any, capsys: Any) -> None:
    shown = ShowProgress("sft")
    told(shown, "on_train_begin", 4, main=False)
    clock[0] += 60
    told(shown, "on_log", 10, loss=0.1, main=False)
    assert lines(capsys) == []
