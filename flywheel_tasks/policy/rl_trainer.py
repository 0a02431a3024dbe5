"""The trainer of reinforcement learning: GRPO or online DPO, completions by our sampler or by vLLM."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from accelerate import DistributedType
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from flywheel_tasks.pipeline.launcher import processes
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.grpo import PackedGRPOTrainer, RolloutError, make_rollout
from flywheel_tasks.policy.online_dpo import PackedOnlineDPOTrainer
from flywheel_tasks.policy.reward_parts import Rewards
from flywheel_tasks.settings import Rl
from flywheel_tasks.training.lora import lora_config
from flywheel_tasks.training.run import trainer_arguments

_SAMPLING = "sampling/importance_sampling_ratio"


def rollout_arguments(section: Rl) -> dict[str, Any]:
    """Arguments of ``GRPOConfig`` that say where completions come from.

    With vLLM the sampler is not the trainer: its kernels, and the top-k cut of its probabilities, make a ratio between
    both policies. vLLM gives a token's probability among the ``top_k`` tokens, the trainer among all of them, so where
    both agree the ratio of a token is what those tokens have together: a little below 1. Over a whole reply these
    multiply to next to nothing, and long replies would hardly be learned; so each token is weighed by its own ratio, at
    most ``max_ratio`` (``token_truncate`` of TRL). A pair of online DPO needs none: its loss holds for pairs that any
    policy drew.

    Args:
        section: settings.
    """
    if section.rollouts == "local":
        return {"use_vllm": False}
    vllm = section.vllm
    found: dict[str, Any] = {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_importance_sampling_correction": section.method == "grpo",
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": vllm.max_ratio,
    }
    if vllm.mode == "server":
        return found | {"vllm_server_base_url": vllm.url, "vllm_server_timeout": vllm.timeout_seconds}
    return found | {"vllm_gpu_memory_utilization": vllm.gpu_memory_share}


def curve_columns(section: Rl, rewards: Rewards) -> tuple[str, ...]:
    """Keys of the trainer's log that the curve shows."""
    pairs = ("pair_share", "pair_margin", "pair_accuracy") if section.method == "online_dpo" else ()
    ratios = section.rollouts == "vllm" and section.method == "grpo"
    return (
        "reward",
        "reward_std",
        *rewards.columns,
        "completions/mean_length",
        "completions/clipped_ratio",
        *(("kl",) if measures_kl(section) else ()),
        "entropy",
        *pairs,
        *((f"{_SAMPLING}/mean", f"{_SAMPLING}/max") if ratios else ()),
        "loss",
        "grad_norm",
        "learning_rate",
    )


def measures_kl(section: Rl) -> bool:
    """Whether each step measures the KL divergence to the policy before RL (one more forward pass in GRPO)."""
    watched = section.watch.kl.warn is not None or section.watch.kl.stop is not None
    return watched or section.beta > 0 or section.method == "online_dpo"


def check_rollouts(section: Rl) -> None:
    """Find out before anything is sampled whether completions can be drawn as set up.

    Raises:
        RolloutError: vLLM is asked for and not installed, or the processes cannot share a step's prompts.
    """
    if section.rollouts == "vllm" and find_spec("vllm") is None:
        raise RolloutError(
            "rl.rollouts: vllm needs the package vllm: pip install 'characterflywheel[vllm]', or rl.rollouts: local"
        )
    if section.prompts_per_step % processes():
        raise RolloutError(
            f"rl.prompts_per_step: {section.prompts_per_step} is no multiple of {processes()} processes"
        )


def make_trainer(
    io: StageIO,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    rewards: Rewards,
    callbacks: Sequence[TrainerCallback],
) -> PackedGRPOTrainer:
    """The trainer that the settings ask for.

    Args:
        io: the stage ``rl``.
        model: the policy before RL, float32; adapters are added.
        tokenizer: of the policy.
        dataset: ``prompt`` as messages and ``index``, in training order.
        rewards: of completions.
        callbacks: added to the trainer's own.

    Raises:
        RolloutError: the weights are sharded.
    """
    section, sampling = io.settings.rl, io.settings.sampling
    arguments = GRPOConfig(
        **trainer_arguments(
            io,
            section.learning_rate,
            section.prompts_per_step * section.group_size,
            section.steps,
            lr_scheduler_type="constant",
            warmup_steps=0,  # a warm-up's first step has a rate of 0, and there are few
        ),
        num_generations=section.group_size,
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        beta=section.beta if section.method == "grpo" else 0.0,
        shuffle_dataset=False,
        **rollout_arguments(section),
    )
    kind: Any = PackedGRPOTrainer
    own: dict[str, Any] = {"watch_kl": measures_kl(section)}
    if section.method == "online_dpo":
        kind, own = PackedOnlineDPOTrainer, {"dpo_beta": section.dpo_beta}
    local = make_rollout(sampling, io.settings.prompt.max_tokens, io.settings.seed)
    trainer: PackedGRPOTrainer = kind(
        model=model,
        reward_funcs=rewards.functions,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "CAUSAL_LM"),
        rollout_func=local if section.rollouts == "local" else None,
        callbacks=list(callbacks),
        **own,
    )
    if trainer.accelerator.distributed_type == DistributedType.FSDP:
        raise RolloutError(
            "rl samples and measures with whole weights: launch it with launchers/ddp.yaml, not by FSDP"
        )
    return trainer
