"""The loss of GRPO, and its gradient, against a few lines of plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flywheel_tasks.policy import rl
from flywheel_tasks.policy.grpo import PackedGRPOTrainer
from flywheel_tasks.policy.reward_parts import Rewards

BETA = 0.3


def token_logps(model: Any, prompt: list[int], reply: list[int], temperature: float) -> torch.Tensor:
    """log p of each token of a reply, one row alone through the model, without packing."""
    row = torch.tensor([prompt + reply], device=model.device)
    logits = model(row).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, row[0, len(prompt) :, None]).squeeze(-1)


def advantages(rewards: list[float], size: int) -> list[float]:
    """Reward minus the group's mean, by the group's standard deviation (Shao et al. 2024, section 4.1)."""
    groups = torch.tensor(rewards).view(-1, size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten().tolist()


def plain_loss(
    trainer: Any, rows: dict[tuple[int, ...], list[int]], worth: list[tuple[Any, float]]
) -> torch.Tensor:
    """-min(ratio A, clip(ratio) A) + beta KL (equations 3 and 4); the ratio is 1, the mean over a step's tokens."""
    total, tokens = torch.zeros(()), 0
    for reply, advantage in worth:
        prompt = rows[tuple(reply)]
        now = token_logps(trainer.model, prompt, reply, trainer.temperature)
        with torch.no_grad(), trainer.model.disable_adapter():
            before = token_logps(trainer.model, prompt, reply, trainer.temperature)
        ratio = (now - now.detach()).exp()
        gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        # Times the ratio, whose value is 1: the gradient is that of the KL itself (TRL's default, DeepSeek-V3.2).
        divergence = ((before - now).exp() - (before - now) - 1) * ratio
        total = total + (BETA * divergence - gain).sum()
        tokens += len(reply)
    return total / tokens


def test_loss_and_gradient_equal_plain_torch(policy_io: Callable[..., Any], monkeypatch: Any) -> None:
    """Advantages from the rewards themselves; each completion alone, token by token; in both steps."""
    drawn: list[list[tuple[list[int], float]]] = []
    seen: list[tuple[float, float]] = []
    score, compute = Rewards.pointwise, PackedGRPOTrainer._compute_loss

    def scored(self: Any, completion_ids: Any, index: Any, **kwargs: Any) -> Any:
        found = score(self, completion_ids, index, **kwargs)
        penalties = self.penalties(completion_ids, lambda name, value: None, index=index)
        drawn.append([*zip(completion_ids, map(sum, zip(found, penalties, strict=True)), strict=True)])
        return found

    def spy(self: Any, model: Any, inputs: Any) -> Any:
        rows = {}
        for ids, kept, prompt, mask in zip(
            *(inputs[name] for name in ("completion_ids", "completion_mask", "prompt_ids", "prompt_mask")),
            strict=True,
        ):
            rows[tuple(ids[kept.bool()].tolist())] = prompt[mask.bool()].tolist()
        worth = advantages([reward for _, reward in drawn[-1]], self.num_generations)
        expected = plain_loss(self, rows, [(ids, a) for (ids, _), a in zip(drawn[-1], worth, strict=True)])
        loss = compute(self, model, inputs)
        weights = [value for name, value in self.model.named_parameters() if "lora_B" in name]
        found, plain = (torch.autograd.grad(one, weights, retain_graph=True) for one in (loss, expected))
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        assert any(float(one.abs().max()) > 1e-3 for one in plain)
        seen.append((float(loss.detach()), float(expected.detach())))
        return loss

    scored.__name__ = "pointwise"
    monkeypatch.setattr(PackedGRPOTrainer, "_compute_loss", spy)
    monkeypatch.setattr(Rewards, "pointwise", scored)
    small = {"rl.select_from": 4, "rl.heldout_prompts": 2, "rl.judge_prompts": 2, "rl.learning_rate": 0.05}
    rl.run(policy_io("rl", small | {"rl.method": "grpo", "rl.beta": BETA}))
    assert len(seen) == 2
    for loss, expected in seen:
        assert loss == pytest.approx(expected, abs=1e-4)
