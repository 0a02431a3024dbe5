"""Every policy stage in bfloat16, as hardware that has it trains: the saved model is checked in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flywheel_tasks.policy import dpo, rl, sft
from flywheel_tasks.training import prepacked
from flywheel_tasks.training.probe import load_model

pytestmark = pytest.mark.slow

STAGES: dict[str, tuple[Callable[..., Any], str]] = {
    "sft": (sft.run, "models/policy_sft"),
    "dpo": (dpo.run, "models/policy_dpo"),
    "rl": (rl.run, "models/policy"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_trained_model_is_what_is_saved(
    stage: str, policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RL samples from the model in training with packed weights, also the small ones of a test's model."""
    monkeypatch.setattr(prepacked, "_LEAST_WEIGHTS", 256)  # no score head
    run, out = STAGES[stage]
    io = policy_io(stage, {"compute.precision": "bfloat16"})
    metrics = run(io)  # fails if the saved model answers otherwise than the trained one
    assert metrics["train"]["moved_share"] > 0
    saved: Path = io.out(out)
    assert load_model(AutoModelForCausalLM, saved, torch.float32).dtype == torch.float32
