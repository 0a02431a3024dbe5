"""Group relative policy optimisation on the project's own sampler and packed rows.

Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1: the advantage of a completion is its reward
minus its group's mean, divided by its group's standard deviation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from flywheel_tasks.policy.packed_logps import packed_log_probs, repad, unpad
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.settings import Rl, Sampling


class RolloutError(RuntimeError):
    """The trainer's batch is not made of whole groups."""


class PackedGRPOTrainer(GRPOTrainer):
    """TRL's trainer; a group's prompt is computed once, and the vocabulary only at completion tokens."""

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
        groups, places = unpad(input_ids, attention_mask, logits_to_keep)
        pad = self._tokenizer.pad_token_id
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self.accelerator.autocast():
            logps, entropy = packed_log_probs(model, head, groups, pad, self.temperature)
        padded = [repad(flat, groups, places, logits_to_keep) for flat in (logps, entropy)]
        return padded[0], padded[1] if compute_entropy else None, None


def rollout_seed(seed: int, step: int) -> int:
    """Seed of the completions of one step: a resumed run draws what an uninterrupted one would."""
    return int(np.random.SeedSequence([seed, 3, step]).generate_state(1)[0])


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
        drawn = sampler.sample_ids(ids, size, rollout_seed(seed, trainer.state.global_step))
        return {
            "prompt_ids": [prompt for prompt in ids for _ in range(size)],
            "completion_ids": [completion for group in drawn for completion in group],
            # The same weights draw and learn, one step a rollout: the ratio of both policies is 1.
            "logprobs": None,
        }

    return rollout


class Rewards:
    """The two reward functions, logged apart.

    Args:
        scorer: the pointwise reward model.
        prompts: the dataset's column ``index`` points into them.
        section: settings.
        unit: what a penalty of 1 takes away, in reward: the scale of a reward model is its own.
        end_ids: tokens that end a reply.
        decode: token ids to texts.
    """

    def __init__(
        self,
        scorer: PointwiseScorer,
        prompts: Sequence[Prompt],
        section: Rl,
        unit: float,
        end_ids: frozenset[int],
        decode: Callable[[Sequence[Sequence[int]]], list[str]],
    ) -> None:
        self._scorer = scorer
        self._prompts = prompts
        self._section = section
        self._unit = unit
        self._end_ids = end_ids
        self._decode = decode

    def pointwise(
        self, completion_ids: list[list[int]], index: list[int], **kwargs: Any
    ) -> list[float | None]:
        """Score of each completion by the reward model."""
        texts = self._decode(completion_ids)
        rows = [(*self._prompts[i].chat, text) for i, text in zip(index, texts, strict=True)]
        return [*self._scorer.score(rows)]

    def penalties(
        self, completion_ids: list[list[int]], log_metric: Callable[[str, float], None], **kwargs: Any
    ) -> list[float | None]:
        """What each completion loses by its length and by not ending; both are logged."""
        ended = [ids[-1] in self._end_ids for ids in completion_ids]
        tokens = [len(ids) - end for ids, end in zip(completion_ids, ended, strict=True)]
        limit = self._section.length_limit
        per_token, whole = (
            -self._unit * each for each in (self._section.length_penalty, self._section.cut_off_penalty)
        )
        length = [per_token * max(0, count - limit) for count in tokens]
        cut_off = [0.0 if end else whole for end in ended]
        log_metric("penalty_length", float(np.mean(length)))
        log_metric("penalty_cut_off", float(np.mean(cut_off)))
        return [a + b for a, b in zip(length, cut_off, strict=True)]
