"""What a training run shows while it runs: a line a step on a terminal, one every few seconds elsewhere."""

import sys
import time

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ShowProgress(TrainerCallback):
    """Prints step, loss or reward, tokens a second and the time left to standard error.

    Args:
        name: the stage, at the start of each line.
        seconds: the least time between two lines where there is no terminal.
    """

    def __init__(self, name: str, seconds: float = 5.0) -> None:
        self._name = name
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._interval = 0.5 if sys.stderr.isatty() else seconds
        self._first_step = 0
        self._tokens_before = 0.0
        self._started = self._shown = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock."""
        self._first_step = state.global_step
        # GRPO goes on counting after a resume, the other trainers begin again.
        self._tokens_before = float(state.num_input_tokens_seen)
        self._started = self._shown = time.monotonic()
        if state.global_step and state.is_world_process_zero:
            self._console.print(f"{self._name}: resumes after step {state.global_step} of {state.max_steps}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Print a line, unless the last one is very recent."""
        now = time.monotonic()
        done = state.global_step - self._first_step
        last = state.global_step >= state.max_steps
        recent = now - self._shown < self._interval and not last
        if not logs or "loss" not in logs or done <= 0 or recent or not state.is_world_process_zero:
            return
        self._shown = now
        seconds = now - self._started
        parts = [f"{self._name}: step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
        if "reward" in logs:
            parts.append(f"reward {logs['reward']:.3f}")
        if "num_tokens" in logs:
            parts.append(f"{(logs['num_tokens'] - self._tokens_before) / seconds:.0f} tokens/s")
        parts.append(f"{(state.max_steps - state.global_step) * seconds / done:.0f} s left")
        self._console.print(", ".join(parts))


class Meter:
    """A line every few seconds on standard error for work that is not a training run.

    Args:
        name: what is done, or None to print nothing.
        total: how many items there are.
        unit: what an item is.
        seconds: the least time between two lines.
    """

    def __init__(self, name: str | None, total: int, unit: str, seconds: float = 5.0) -> None:
        self._name = name
        self._total = total
        self._unit = unit
        self._interval = seconds
        self._done = 0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._started = self._shown = time.monotonic()

    def advance(self, items: int) -> None:
        """Count items that are done."""
        self._done += items
        now = time.monotonic()
        if self._name is None or now - self._shown < self._interval:
            return
        self._shown = now
        left = (self._total - self._done) * (now - self._started) / max(1, self._done)
        self._console.print(f"{self._name}: {self._done}/{self._total} {self._unit}, {left:.0f} s left")
