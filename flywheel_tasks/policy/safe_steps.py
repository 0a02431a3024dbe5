"""Climbing in safe steps: checkpoints measured while a policy trains, and which of them is handed over.

The reward model is right only near the policy whose replies it learned from. So at a few steps the policy
answers held-out prompts, and its replies are compared with the champion's, by the pointwise model that is
optimised and by the pairwise one that is not. The checkpoint whose expected pointwise win rate comes nearest to the
target is handed over, not the last one (paper, section on offline evaluation: healthy versions won 50% to
65%, 60% is the ideal); and a run in which reward rises while the judge falls is over-optimised and stops.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flywheel_tasks.curation.sampling import in_turns
from flywheel_tasks.pipeline.launcher import main_first
from flywheel_tasks.policy.checks import (
    CHECKS,
    Check,
    compare,
    judge_stop,
    nearest,
    over_optimised,
    spreads_to_stop,
)
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.rewards.scoring import PairwiseScorer
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.tables import read_rows, write_rows

_log = logging.getLogger(__name__)
_CLEAR = 2.0  # standard deviations of the users' falls: a mean fall so far is one of nearly every user
Row = dict[str, Any]


class SafeSteps(TrainerCallback):
    """Measures checkpoints during a run, remembers their weights and stops a run that is over-optimised.

    Everything is kept in the folder of the run's checkpoints, so that a killed run goes on with it. What lies after the
    checkpoint that it goes on from is made again: rollouts need not be the same the second time.

    Args:
        folder: where checks and weights of checkpoints are kept.
        every: steps between two checks; the last step is checked too.
        steps: of the whole run.
        prompts: held-out ones.
        judged: of how many of them the judge reads the first reply: of one of every user before a second of any.
        champion: the champion's replies to them, as many of each as ``measure`` gives, rows of
            :data:`~flywheel_tasks.policy.heldout.SIDE`.
        judge: the pairwise model.
        measure: a model to its replies, rows of the same kind (see :func:`flywheel_tasks.policy.heldout.measure`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        steps: int,
        prompts: Sequence[Prompt],
        judged: int,
        champion: Sequence[Row],
        judge: PairwiseScorer,
        measure: Callable[[Any, int], list[Row]],
    ) -> None:
        self._folder = folder
        self._every = every
        self._looks = -(-steps // every)
        self._users = {prompt.prompt_id: prompt.user for prompt in prompts}
        self._judged = in_turns(prompts, lambda prompt: prompt.user)[:judged]
        self._champion = champion
        self._judge = judge
        self._measure = measure
        self._warn()

    def _warn(self) -> None:
        """Say before a run if the judge will hardly stop it, whatever it does."""
        users = len({prompt.user for prompt in self._judged})
        needed = spreads_to_stop(users, self._looks)
        if needed is None:
            _log.warning("rl: the judge reads prompts of %d held-out users: it cannot stop the run", users)
        elif needed > _CLEAR:
            _log.warning(
                "rl: the judge reads prompts of %d held-out users: it will hardly stop the run, for it must fall by "
                "%.1f standard deviations of their falls to be seen in half of all cases",
                users,
                needed,
            )

    def judge_stop(self) -> dict[str, Any]:
        """See :func:`flywheel_tasks.policy.checks.judge_stop`."""
        return judge_stop(self.checks(), self._looks)

    def _rows(self, step: int) -> Path:
        return self._folder / f"check-{step}.parquet"

    def _weights(self, step: int) -> Path:
        return self._folder / f"check-{step}.safetensors"

    def checks(self) -> list[Check]:
        """All that were made, by step."""
        steps = sorted(int(path.stem.removeprefix("check-")) for path in self._folder.glob("check-*.parquet"))
        return [self._read(step) for step in steps]

    def _read(self, step: int) -> Check:
        return Check(step, tuple(read_rows(self._rows(step))), self._users)

    def stopped_at(self, done: int | None = None) -> int | None:
        """The step at which the run was, or has to be, stopped.

        Args:
            done: steps of the run; later checks are not looked at. None: all are.
        """
        found = [check for check in self.checks() if done is None or check.step <= done]
        return found[-1].step if found and over_optimised(found, self._looks) else None

    def check(self, step: int, model: Any) -> Check:
        """Measure a model, unless this run has done so before it was killed."""
        with main_first():
            if not self._rows(step).exists():
                self._make(step, model)
        return self._read(step)

    def _keep(self, step: int, model: Any) -> None:
        """Remember the trained weights of a checkpoint."""
        trained = {
            name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad
        }
        with atomic_path(self._weights(step)) as temporary:
            save_file({name: value.contiguous() for name, value in trained.items()}, temporary)

    def _make(self, step: int, model: Any) -> None:
        replies = self._measure(model, step)
        chats = {prompt.prompt_id: prompt.chat for prompt in self._judged}
        read = [row["sample"] == 0 and row["prompt_id"] in chats for row in replies]
        asked = [
            (*chats[new["prompt_id"]], new["reply"], old["reply"])
            for new, old, wanted in zip(replies, self._champion, read, strict=True)
            if wanted
        ]
        said = iter(self._judge.prefer(asked))
        judged = [next(said) if wanted else None for wanted in read]
        made = compare(step, replies, self._champion, judged)
        write_rows(list(made.rows), CHECKS, self._rows(step))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget checks and weights of steps that a killed run did after the checkpoint it goes on from."""
        with main_first():
            for path in self._folder.glob("check-*") if state.is_world_process_zero else ():
                if int(path.stem.removeprefix("check-")) > state.global_step:
                    path.unlink()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check every few steps, and stop where reward rises and the judge falls."""
        step = state.global_step
        if step % self._every and step != state.max_steps:
            return
        model = kwargs["model"]
        if state.is_world_process_zero:
            self._keep(step, model)
        made = self.check(step, model)
        _log.info("rl: held-out check after step %d: %s", step, made.summary())
        if self.stopped_at(step) is not None:
            _log.warning("rl: stopped after step %d: reward rises while the pairwise judge falls", step)
            control.should_training_stop = True
            control.should_save = True  # a run that is killed after this goes on from here

    def chosen(
        self,
        target: float,
        before: int | None = None,
        hand_over: Literal["nearest", "last", "start"] = "nearest",
    ) -> Check:
        """The check to hand over: nearest to the target, of those before the run was over-optimised.

        Args:
            target: win rate against the champion.
            before: a step that passed another limit; later checks are left out, but never that of step 0.
            hand_over: for experiments: the last check, whatever was measured, or that of the policy before RL.
        """
        found = self.checks()
        if hand_over != "nearest":
            return found[-1 if hand_over == "last" else 0]
        stopped = self.stopped_at()
        allowed = [check for check in found if check.step != stopped]
        if before is not None:
            allowed = [check for check in allowed if check.step < max(1, before)]
        return nearest(allowed, target)

    @torch.no_grad()
    def restore(self, model: torch.nn.Module, step: int) -> None:
        """Put a checkpoint's weights into a model.

        Args:
            model: the one that was trained.
            step: of a check; 0 puts the adapters back to where they change nothing.
        """
        saved: Mapping[str, torch.Tensor] = load_file(self._weights(step)) if step else {}
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            if step:
                value.copy_(saved[name])
            elif "lora_B" in name:
                value.zero_()
