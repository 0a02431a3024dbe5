"""Online DPO: which completions make a pair, the loss against plain torch, and a killed run."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from flywheel_tasks.policy import rl, safe_steps
from flywheel_tasks.policy.online_dpo import PackedOnlineDPOTrainer, pair_rows
from flywheel_tasks.policy.reward_parts import Rewards
from flywheel_tasks.storage.digests import tree_digest
from tests.policy.test_dpo import log_prob

METHOD = {
    "rl.method": "online_dpo",
    "rl.dpo_beta": 0.3,
    "rl.learning_rate": 0.05,
    "rl.steps": 4,
    "rl.target_win_rate": 1.0,
}


def test_the_best_and_the_worst_of_a_group_make_its_pair() -> None:
    advantages = torch.tensor([0.1, 0.9, -1.0, 0.0, 0.0, 0.0, -0.5, -0.6, 1.1])
    best, worst, differ = pair_rows(advantages, 3)
    assert best.tolist()[::2] == [1, 8]
    assert worst.tolist()[::2] == [2, 7]
    assert differ.tolist() == [True, False, True]


@pytest.mark.slow
def test_the_loss_is_that_of_plain_torch_and_a_killed_run_ends_the_same(
    policy_io: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    """Every step's loss against equation 7, token by token, on pairs found from the rewards themselves."""
    monkeypatch.setattr(safe_steps, "over_optimised", lambda *checks: False)  # the tiny judge is a random one
    drawn: list[list[tuple[list[int], float]]] = []
    seen: list[tuple[float, float]] = []
    score, compute = Rewards.pointwise, PackedOnlineDPOTrainer._compute_loss

    def scored(self: Any, completion_ids: Any, index: Any, **kwargs: Any) -> Any:
        found = score(self, completion_ids, index, **kwargs)
        penalties = self.penalties(completion_ids, lambda name, value: None, index=index)
        total = [a + b for a, b in zip(found, penalties, strict=True)]
        drawn.append([*zip(completion_ids, total, strict=True)])
        return found

    def spy(self: Any, model: Any, inputs: Any) -> Any:
        size, losses = self.num_generations, []
        prompts: dict[tuple[int, ...], list[int]] = {}
        for row, kept, prompt, mask in zip(
            inputs["completion_ids"],
            inputs["completion_mask"],
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            strict=True,
        ):
            prompts[tuple(row[kept.bool()].tolist())] = prompt[mask.bool()].tolist()
        for start in range(0, len(drawn[-1]), size):
            group = sorted(drawn[-1][start : start + size], key=lambda one: one[1])
            margins = []
            for ids, _ in (group[-1], group[0]):
                now = log_prob(self.model, prompts[tuple(ids)], ids)
                with self.model.disable_adapter():
                    margins.append(now - log_prob(self.model, prompts[tuple(ids)], ids))
            losses.append(-float(logsigmoid(torch.tensor(0.3 * (margins[0] - margins[1])))))
        loss = compute(self, model, inputs)
        seen.append((float(loss.detach()), sum(losses) / len(losses)))
        return loss

    scored.__name__ = "pointwise"
    whole = policy_io("rl", METHOD, root=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(PackedOnlineDPOTrainer, "_compute_loss", spy)
        patch.setattr(Rewards, "pointwise", scored)
        metrics = rl.run(whole)
    assert len(seen) == metrics["train"]["steps"] == 4
    for loss, expected in seen:
        assert loss == pytest.approx(expected, abs=1e-4)
    assert seen[0][0] == pytest.approx(0.6931, abs=1e-3)  # both policies are the same before the first step
    assert abs(seen[1][0] - 0.6931) > 1e-4
    with whole.out("plots/rl.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(rows[1]["kl"]) > 0
    assert {float(row["pair_share"]) for row in rows} == {1.0}
    assert metrics["train"]["method"] == "online_dpo"

    calls: list[int] = []
    original = Rewards.penalties

    def dies(self: Rewards, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the fourth step
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    dies.__name__ = "penalties"
    monkeypatch.setattr(Rewards, "penalties", dies)
    with pytest.raises(KeyboardInterrupt):
        rl.run(policy_io("rl", METHOD, root=tmp_path / "killed"))
    again = policy_io("rl", METHOD, root=tmp_path / "killed")
    assert rl.run(again) == metrics
    assert len(calls) == 5  # the fourth step alone was done again
    for name in ("models/policy", "data/rl", "plots/rl.csv", "plots/rl_checks.csv"):
        assert tree_digest(again.out(name)) == tree_digest(whole.out(name)), name
