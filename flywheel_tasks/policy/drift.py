"""Limits on how far reinforcement learning may drift: KL to the policy before it, and entropy.

Both are the trainer's own numbers of each step, in nats a token: KL by the estimator k3 (Schulman 2020,
"Approximating KL divergence": exp(d) - d - 1 with d = log p0 - log p, never negative) and the mean entropy at
completion tokens. A step's numbers are of the weights that drew its completions; where a limit can stop a run, the
weights after its last step are measured too, at the last completions. They seldom show reward hacking early (that is
what :mod:`flywheel_tasks.policy.safe_steps` is for); they do show a run that has come apart.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.settings import Limit, Watch
from flywheel_tasks.storage.documents import read_json, write_json

_log = logging.getLogger(__name__)


def passed(name: str, value: float | None, limit: float | None) -> bool:
    """Whether a value is on the wrong side of a limit: KL above it, entropy below it."""
    if value is None or limit is None:
        return False
    return not value <= limit if name == "kl" else not value >= limit


class DriftWatch(TrainerCallback):
    """Warns, or stops the run, where a step's KL or entropy passes a limit.

    Args:
        folder: of the run's checkpoints; a stop is noted there, so that a killed run stays stopped.
        watch: the limits.

    Attributes:
        measure: KL and entropy of the weights as they are; called after the last step, in all processes.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.measure: Callable[[], Mapping[str, float]] | None = None
        self._note = folder / "stopped-by-limit.json"
        self._last = folder / "drift-after-last-step.json"
        self._limits: dict[str, Limit] = {"kl": watch.kl, "entropy": watch.entropy}
        self._warned: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Forget what was noted after the checkpoint that a killed run goes on from: it has those steps still to do."""
        for note in (self._note, self._last) if state.is_world_process_zero else ():
            if note.exists() and int(read_json(note)["step"]) > state.global_step:
                note.unlink()

    def _stops(self) -> bool:
        return any(limit.stop is not None for limit in self._limits.values())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure the weights after the last step: no later step does."""
        if state.global_step != state.max_steps or self.measure is None or not self._stops():
            return
        found = dict(self.measure())
        if state.is_world_process_zero:
            write_json({"step": state.global_step, **found}, self._last)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Look at the step's KL and entropy: those of the weights that drew its completions."""
        for name, limit in self._limits.items():
            value = (logs or {}).get(name)
            if passed(name, value, limit.stop):
                assert value is not None
                text = f"{name} is {value:.3g}, the limit is {limit.stop:g}"
                _log.warning("rl: stopped after step %d: %s", state.global_step, text)
                if state.is_world_process_zero:
                    write_json({"step": state.global_step, "reason": text}, self._note)
                control.should_training_stop = True
                control.should_save = True  # a run that is killed after this goes on from here
                return
            if passed(name, value, limit.warn) and name not in self._warned:
                self._warned.add(name)
                _log.warning("rl: step %d: %s is %.3g, past %g", state.global_step, name, value, limit.warn)

    def _stop(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = read_json(self._note) if self._note.exists() else {}
        return found

    def stopped_at(self) -> int | None:
        """The step at which the run was stopped."""
        step = self._stop().get("step")
        return None if step is None else int(step)

    def _after_last(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = read_json(self._last) if self._last.exists() else None
        return found

    def before(self, last: int) -> int | None:
        """Checkpoints of this step and later ones passed a limit, or were not measured; None if all are within.

        The numbers of a step are of the weights after the step before it.

        Args:
            last: step of the whole run.
        """
        step = self.stopped_at()
        if step is not None:
            return step - 1
        if not self._stops():
            return None
        found = self._after_last() or {}
        within = all(
            limit.stop is None or (found.get(name) is not None and not passed(name, found[name], limit.stop))
            for name, limit in self._limits.items()
        )
        return None if within else last

    def summary(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Extremes, how many steps were past a warning, why the run was stopped, and the weights after its last step.

        Args:
            history: the trainer's log.
        """
        steps = [entry for entry in history if "loss" in entry]
        last = self._after_last()
        found: dict[str, Any] = {"stopped": self._stop().get("reason")}
        for name, limit in self._limits.items():
            values = [entry[name] for entry in steps if entry.get(name) is not None]
            extreme = max if name == "kl" else min
            found[name] = {
                "worst": extreme(values) if values else None,
                "last": values[-1] if values else None,
                "after_last": None if last is None else last[name],
                "steps_past_warning": sum(passed(name, value, limit.warn) for value in values),
            }
        return found
