from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flywheel_tasks.policy.packed_logps import packed_log_probs, repad, unpad
from tests.policy.conftest import clear_choices

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [9, 10], [11]]
COMPLETIONS = [[20, 21, 2], [22], [23, 24], [25, 26, 27, 2], [28, 2]]
WIDTH = 4


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> Any:
    return clear_choices(tiny_models / "base", 0.2)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """As TRL pads: prompts left, completions right, both with the end token (2)."""
    left = max(map(len, PROMPTS))
    ids, mask = [], []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        before, after = left - len(prompt), WIDTH - len(completion)
        ids.append([2] * before + prompt + completion + [2] * after)
        mask.append([0] * before + [1] * len(prompt + completion) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_each_row_alone(model: Any, temperature: float) -> None:
    groups, places = unpad(*padded(), WIDTH)
    assert [len(group.continuations) for group in groups] == [2, 2, 1]
    logps, entropy = packed_log_probs(model, model.get_output_embeddings(), groups, 2, temperature)
    found, spread = (repad(flat, groups, places, WIDTH) for flat in (logps, entropy))
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        with torch.no_grad():
            logs = (model(torch.tensor([prompt + completion])).logits[0] / temperature).log_softmax(-1)
        for i in range(WIDTH):
            if i >= len(completion):
                assert found[row, i] == spread[row, i] == 0
                continue
            at = logs[len(prompt) + i - 1]
            assert float(found[row, i].detach()) == pytest.approx(float(at[completion[i]]), abs=1e-4)
            assert float(spread[row, i]) == pytest.approx(float(-(at.exp() * at).sum()), abs=1e-4)


def test_gradients_equal_those_of_each_row_alone(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    groups, _ = unpad(*padded(), WIDTH)
    logps, _ = packed_log_probs(model, model.get_output_embeddings(), groups, 2)
    (packed,) = torch.autograd.grad(logps.sum(), weight)
    total = torch.zeros(())
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        total = total + sum(logs[len(prompt) + i - 1, token] for i, token in enumerate(completion))
    (alone,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-5)


def test_equal_to_trls_own(model: Any) -> None:
    """The same numbers as the method of TRL that it stands in for."""
    from trl.trainer.utils import add_fused_lm_head

    ids, mask = padded()
    groups, places = unpad(ids, mask, WIDTH)
    logps, entropy = packed_log_probs(model, model.get_output_embeddings(), groups, 2, 0.9)
    own = AutoModelForCausalLM.from_config(model.config)
    own.load_state_dict(model.state_dict())
    add_fused_lm_head(own, temperature=0.9, outputs=("log_probs", "entropy"))
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-WIDTH] = -100
    with torch.no_grad():
        out = own(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(
        repad(logps, groups, places, WIDTH), out.log_probs[:, -WIDTH:], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        repad(entropy, groups, places, WIDTH), out.entropy[:, -WIDTH:], rtol=1e-4, atol=1e-4
    )
