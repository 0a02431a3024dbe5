"""Rollouts by vLLM: the arguments, and the importance-sampling correction with a stand-in for vLLM's sampler."""

import csv
import math
from typing import Any, ClassVar

import pytest
import torch
from trl import GRPOConfig

from flywheel_tasks.policy import rl, rl_trainer
from flywheel_tasks.policy.grpo import RolloutError
from flywheel_tasks.policy.rl_trainer import check_rollouts, rollout_arguments
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.settings import load_settings
from tests.conftest import PROJECT


def section(**changes: Any) -> Any:
    return load_settings(PROJECT / "params.yaml").rl.model_copy(update=changes)


def arguments(settings: Any) -> GRPOConfig:
    return GRPOConfig(
        output_dir="x",
        use_cpu=True,
        bf16=False,
        report_to="none",
        num_generations=2,
        per_device_train_batch_size=2,
        **rollout_arguments(settings),
    )


def test_the_correction_is_on_where_the_sampler_is_not_the_trainer() -> None:
    assert not arguments(section()).use_vllm
    server = arguments(section(rollouts="vllm"))
    assert server.vllm_importance_sampling_correction
    assert (server.vllm_importance_sampling_mode, server.vllm_importance_sampling_clip_max) == (
        "token_truncate",
        3.0,
    )
    assert (server.vllm_mode, server.vllm_server_base_url) == ("server", "http://127.0.0.1:8000")
    vllm = section().vllm.model_copy(update={"mode": "colocate", "gpu_memory_share": 0.4})
    colocated = arguments(section(rollouts="vllm", vllm=vllm))
    assert (colocated.vllm_mode, colocated.vllm_gpu_memory_utilization) == ("colocate", 0.4)
    assert not arguments(section(rollouts="vllm", method="online_dpo")).vllm_importance_sampling_correction


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_trainer, "find_spec", lambda name: None)
    with pytest.raises(
        RolloutError, match=r"needs the package vllm: pip install 'characterflywheel\[vllm\]'"
    ):
        check_rollouts(section(rollouts="vllm"))


class StandIn:
    """Draws as vLLM would and gives its ``processed_logprobs``: those among the ``top_k`` tokens.

    For one reply of each group they differ from the trainer's by a further factor, as if its weights did.
    """

    made: ClassVar[list[Any]] = []
    drift = 2e4

    def __init__(self, *, model: Any, processing_class: Any, temperature: float, **options: Any) -> None:
        self.model, self.temperature, self.options, self.syncs = model, temperature, options, 0
        self.ratios: list[list[list[float]]] = []  # of the trainer's to ours, by call, reply and token
        sampling = load_settings(PROJECT / "params.yaml").sampling.model_copy(update={"max_new_tokens": 8})
        self.sampler = Sampler.from_model(model, processing_class, sampling=sampling, max_prompt_tokens=96)
        self.made.append(self)

    def sync_weights(self) -> None:
        self.syncs += 1

    def generate(self, prompts: list[list[int]], num_generations: int, **kwargs: Any) -> tuple[Any, ...]:
        drawn = self.sampler.sample_ids(prompts[::num_generations], num_generations, self.syncs)
        completions = [ids for group in drawn for ids in group]
        self.ratios.append([])
        logps = []
        for number, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
            with torch.no_grad():
                row = torch.tensor([prompt + ids], device=self.model.device)
                logits = self.model(row).logits[0, len(prompt) - 1 : -1].cpu()
            logits, chosen = logits / self.temperature, torch.tensor(ids)[:, None]
            among = logits.topk(self.options["top_k"]).values.logsumexp(-1)
            drift = math.log(self.drift) if number % num_generations == 0 else 0.0
            found = logits.gather(-1, chosen).squeeze(-1) - among - drift
            ratios = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1) - found
            self.ratios[-1].append(ratios.exp().tolist())
            logps.append([[float(value)] for value in found])
        return prompts, completions, logps, None


def test_each_token_is_weighed_by_its_own_ratio_up_to_the_largest_allowed(
    policy_io: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whole replies the ratios of their tokens would multiply, to nothing for a long one."""
    monkeypatch.setattr(rl_trainer, "find_spec", lambda name: object())
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    io = policy_io(
        "rl", {"rl.rollouts": "vllm", "rl.vllm": section().vllm.model_dump() | {"mode": "colocate"}}
    )
    rl.run(io)
    (standin,) = StandIn.made
    assert standin.syncs == 2  # the weights of each step
    assert standin.options["mode"] == "colocate"
    with io.out("plots/rl.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert standin.options["top_k"] == io.settings.sampling.top_k
    for row, replies in zip(rows, standin.ratios, strict=True):
        free = [ratio for ratios in replies for ratio in ratios]
        assert max(free) > 3.0 > 1.0 > min(free) > 0.0
        weights = [min(3.0, ratio) for ratio in free]
        mean = float(row["sampling/importance_sampling_ratio/mean"])
        assert mean == pytest.approx(sum(weights) / len(weights), rel=1e-3)
        assert float(row["sampling/importance_sampling_ratio/max"]) == pytest.approx(3.0)
