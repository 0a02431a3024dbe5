"""Online DPO on the rollouts of GRPO: the best and the worst completion of each prompt make a pair.

Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback" (arXiv 2402.04792): the loss is that of DPO
(Rafailov et al. 2023, arXiv 2305.18290, equation 7) on pairs that the policy in training drew itself. TRL's own trainer
(``trl.experimental.online_dpo``) draws two completions by ``model.generate`` and takes no rollout of ours; here the
best and the worst of ``group_size`` make the pair, and everything but the loss is that of GRPO.
"""

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from flywheel_tasks.policy.grpo import PackedGRPOTrainer

ROWS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def pair_rows(advantages: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of the best and the worst completion of each group, and whether they differ.

    Args:
        advantages: (groups * size,), groups one after another.
        size: completions a group.

    Returns:
        three tensors (groups,): row of the best, row of the worst (of equals the first), and False where all
        completions of a group are worth the same: such a group has no pair.
    """
    grouped = advantages.view(-1, size)
    first = torch.arange(grouped.shape[0], device=advantages.device) * size
    best, worst = grouped.argmax(1), grouped.argmin(1)
    differ = grouped.max(1).values > grouped.min(1).values
    return first + best, first + worst, differ


def dpo_loss(now: torch.Tensor, before: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and margin of each pair.

    Args:
        now: log-probabilities of whole replies, (2, pairs): the chosen ones, the rejected ones.
        before: the same by the reference policy.
        beta: how strongly the reference holds.

    Returns:
        loss (pairs,) and margin of the implicit rewards (pairs,).
    """
    rewards = beta * (now - before)
    margin = rewards[0] - rewards[1]
    return -logsigmoid(margin), margin.detach()


class PackedOnlineDPOTrainer(PackedGRPOTrainer):
    """GRPO's trainer with the loss of DPO; the reference is the policy before RL (adapters switched off).

    Args:
        args: of the trainer.
        dpo_beta: how strongly the reference holds.
        kwargs: of the trainer.
    """

    def __init__(self, *args: Any, dpo_beta: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._dpo_beta = dpo_beta

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """GRPO's rollout, of which the pairs alone are kept: ``pair`` numbers them, ``chosen`` is 1 or 0."""
        drawn = super()._generate_and_score_completions(inputs)
        assert self.num_generations is not None
        best, worst, differ = pair_rows(drawn["advantages"], self.num_generations)
        self._metrics["train"]["pair_share"].append(self._mean(differ.float(), torch.ones_like(best)))
        numbers = torch.arange(len(best), device=best.device)
        rows = torch.cat([best, worst])
        return {name: drawn[name][rows] for name in ROWS} | {
            "pair": torch.cat([numbers, numbers]),
            "chosen": torch.cat([torch.ones_like(best), torch.zeros_like(worst)]),
            "real": torch.cat([differ, differ]),
        }

    @property
    def _drift_temperature(self) -> float:
        return 1.0

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs
        kept, metrics = inputs["completion_mask"], self._metrics["train"]
        # The trainer has shuffled the rows: back to all chosen ones, then all rejected ones, pair by pair.
        order = torch.argsort(inputs["pair"] + len(kept) * (1 - inputs["chosen"]))
        logps, entropy = self._packed(model, *self._whole(inputs), temperature=1.0)
        with torch.no_grad(), self._reference():
            before, _ = self._packed(model, *self._whole(inputs), temperature=1.0)
        now, then = ((flat * kept).sum(-1)[order].view(2, -1) for flat in (logps, before))
        losses, margins = dpo_loss(now, then, self._dpo_beta)
        real = inputs["real"][order].view(2, -1)[0]
        self._log_drift(logps, before, kept)
        metrics["entropy"].append(self._mean(entropy, kept))
        metrics["pair_margin"].append(self._mean(margins, real))
        metrics["pair_accuracy"].append(self._mean((margins > 0).float(), real))
        # With no pair at all the loss is 0 and still depends on the weights, as the backward pass needs.
        return (losses * real).sum() / real.sum().clamp(min=1)
