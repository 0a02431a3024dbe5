from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from flywheel_tasks.policy.compact_head import vocabulary_at_labels


def test_same_loss_and_gradients_from_fewer_positions(tiny_models: Path, monkeypatch: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [2, 2, 11, 12, 13, 2]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    labels = ids.clone()
    labels[:, :4] = -100
    function = trl.trainer.utils._ChunkedLogProbFunction
    positions: list[int] = []
    original = function.apply

    def count(hidden: torch.Tensor, *args: Any) -> Any:
        positions.append(len(hidden))
        return original(hidden, *args)

    monkeypatch.setattr(function, "apply", count)
    weight = model.model.layers[0].mlp.up_proj.weight

    def once() -> tuple[Any, torch.Tensor]:
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        return out, torch.autograd.grad(out.loss, weight)[0]

    plain, plain_gradient = once()
    with vocabulary_at_labels():
        compact, gradient = once()
    again, _ = once()
    assert positions == [10, 4, 10]
    torch.testing.assert_close(compact.loss, plain.loss)
    torch.testing.assert_close(compact.log_probs, plain.log_probs)
    torch.testing.assert_close(compact.entropy, plain.entropy)
    torch.testing.assert_close(gradient, plain_gradient)
    torch.testing.assert_close(again.loss, plain.loss)
