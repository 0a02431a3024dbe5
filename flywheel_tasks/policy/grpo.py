"""Group relative policy optimisation on the project's own sampler and packed rows.

Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1: the advantage of a completion is its reward
minus its group's mean, divided by its group's standard deviation.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from flywheel_tasks.policy.packed_logps import packed_log_probs, repad, unpad
from flywheel_tasks.policy.sampler import Sampler, end_ids
from flywheel_tasks.settings import Sampling
from flywheel_tasks.training.endings import Completion, check_endings


class RolloutError(RuntimeError):
    """Rollouts cannot be drawn as set up; the message says why."""


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's trainer; a group's prompt is computed once, and the vocabulary only at completion tokens.

    Args:
        args: of the trainer.
        watch_kl: log the KL divergence to the policy before RL even where it is no part of the loss.
        kwargs: of the trainer.
    """

    def __init__(self, *args: Any, watch_kl: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch_kl = watch_kl
        self._logps: torch.Tensor | None = None  # of the last loss
        self._rows: dict[str, Any] | None = None  # of the last loss

    def _packed(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies of completion tokens, (rows, width)."""
        groups, places = unpad(ids, mask, width)
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self.accelerator.autocast():
            logps, entropy = packed_log_probs(model, head, groups, self._tokenizer.pad_token_id, temperature)
        return repad(logps, groups, places, width), repad(entropy, groups, places, width)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        if compute_aux_loss or any(value is not None for value in images.values()):
            raise NotImplementedError("packed rows hold text only, and no router loss")
        logps, entropy = self._packed(model, input_ids, attention_mask, logits_to_keep, self.temperature)
        if torch.is_grad_enabled():
            self._logps = logps.detach()
        return logps, entropy if compute_entropy else None, None

    @staticmethod
    def _whole(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Token ids and attention mask of prompts with completions, and the completions' width."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        return ids, mask, inputs["completion_ids"].size(1)

    def _reference(self) -> AbstractContextManager[Any]:
        """Within it, the model is the policy before RL."""
        found: AbstractContextManager[Any] = self.accelerator.unwrap_model(self.model).disable_adapter()
        return found

    def _mean(self, values: torch.Tensor, kept: torch.Tensor) -> float:
        """Mean over what is kept, of all processes; NaN, which TRL leaves out of its log, where nothing is."""
        parts = torch.stack([(values.detach() * kept).sum(), kept.sum().float()])
        total, count = self.accelerator.reduce(parts, reduction="sum").tolist()
        return total / count if count else float("nan")

    def _kl(self, now: torch.Tensor, before: torch.Tensor, kept: torch.Tensor) -> float:
        difference = before - now.detach()
        return self._mean(difference.exp() - difference - 1, kept)

    def _log_drift(self, now: torch.Tensor, before: torch.Tensor, kept: torch.Tensor) -> None:
        self._metrics["train"]["kl"].append(self._kl(now, before, kept))

    @property
    def _drift_temperature(self) -> float:
        return float(self.temperature)

    @torch.no_grad()
    def drift(self) -> dict[str, float]:
        """KL divergence and entropy of the weights as they are now, at the completions of the last step.

        What a step logs is of the weights before its update, so those after the last step are in no log. All processes
        must call it.
        """
        assert self._rows is not None
        whole, kept = self._whole(self._rows), self._rows["completion_mask"]
        now, entropy = self._packed(self.model, *whole, self._drift_temperature)
        with self._reference():
            before, _ = self._packed(self.model, *whole, self._drift_temperature)
        return {"kl": self._kl(now, before, kept), "entropy": self._mean(entropy, kept)}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout, in which every completion ends in an end token or has as many tokens as it may."""
        drawn: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ends = end_ids(self.accelerator.unwrap_model(self.model), self._tokenizer)
        rows = zip(drawn["completion_ids"], drawn["completion_mask"].bool(), strict=True)
        found = (
            Completion(
                f"step {self.state.global_step + 1}, completion {number}", ids[kept].tolist(), int(kept.sum())
            )
            for number, (ids, kept) in enumerate(rows)
        )
        check_endings(found, ends, self.max_completion_length)
        return drawn

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs
        loss = super()._compute_loss(model, inputs)
        if self._watch_kl and self.beta == 0.0:  # otherwise TRL has logged it
            assert self._logps is not None
            with torch.no_grad(), self._reference():
                before, _ = self._packed(model, *self._whole(inputs), self.temperature)
            self._log_drift(self._logps, before, inputs["completion_mask"])
        return loss


def rollout_seed(seed: int, step: int, process: int = 0) -> int:
    """Seed of the completions of one step: a resumed run draws what an uninterrupted one would."""
    parts = [seed, 3, step, process] if process else [seed, 3, step]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def make_rollout(sampling: Sampling, max_prompt_tokens: int, seed: int) -> Callable[..., dict[str, Any]]:
    """TRL's ``rollout_func``: completions by :class:`~flywheel_tasks.policy.sampler.Sampler`.

    Args:
        sampling: how to draw.
        max_prompt_tokens: of a prompt.
        seed: of the run.
    """

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        size = trainer.num_generations
        groups = prompts[::size]
        if [prompt for prompt in groups for _ in range(size)] != prompts:
            raise RolloutError(f"{len(prompts)} prompts are not whole groups of {size}")
        model = trainer.accelerator.unwrap_model(trainer.model)
        tokenizer = trainer.processing_class
        sampler = Sampler.from_model(model, tokenizer, sampling=sampling, max_prompt_tokens=max_prompt_tokens)
        ids = [
            tokenizer.apply_chat_template(
                prompt, tokenize=True, add_generation_prompt=True, return_dict=False
            )[-max_prompt_tokens:]
            for prompt in groups
        ]
        draw_seed = rollout_seed(seed, trainer.state.global_step, trainer.accelerator.process_index)
        drawn = sampler.sample_ids(ids, size, draw_seed)
        return {
            "prompt_ids": [prompt for prompt in ids for _ in range(size)],
            "completion_ids": [completion for group in drawn for completion in group],
            # The same weights draw and learn, one step a rollout: the ratio of both policies is 1.
            "logprobs": None,
        }

    return rollout
