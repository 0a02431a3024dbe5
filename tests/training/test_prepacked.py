"""Linear layers with prepacked weights compute what plain ones compute, and leave a model in training as it was."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from flywheel_tasks.training import prepacked as module
from flywheel_tasks.training.prepacked import prepack, prepacked


@pytest.fixture
def model(tiny_models: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_models / "base", dtype=torch.float32).eval()


def logits(model: Any, rows: int = 3) -> torch.Tensor:
    ids = torch.arange(rows * 7).reshape(rows, 7) % 300
    with torch.inference_mode():
        return model(input_ids=ids).logits


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of the tests' models are small."""
    monkeypatch.setattr(module, "_LEAST_WEIGHTS", 1)


@pytest.mark.parametrize("rows", [1, 48, 2048])
@pytest.mark.parametrize("bias", [True, False])
def test_products_equal_plain_ones_for_any_number_of_rows(rows: int, bias: bool) -> None:
    layer = nn.Linear(192, 320, bias=bias)
    inputs = [
        torch.randn(3, 5, 192),
        torch.randn(1, 192),
        torch.randn(3000, 192),
        torch.randn(5, 3, 192).mT.mT,
    ]
    with torch.inference_mode():
        expected = [layer(x) for x in inputs]
        prepack(nn.Sequential(layer), rows)
        for x, plain in zip(inputs, expected, strict=True):
            torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)


def test_a_frozen_model_answers_as_before_and_lets_its_plain_weights_go(model: Any) -> None:
    plain = logits(model)
    gate = model.model.layers[0].mlp.gate_proj
    weight = weakref.ref(gate.weight)
    prepack(model, 48)
    assert {"lm_head", "model.layers.0.mlp.gate_proj"} <= set(packed_layers(model))
    torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-5)
    assert model.device.type == "cpu"
    assert model.dtype == torch.float32
    gc.collect()
    assert weight() is None


def test_a_model_in_training_is_as_it_was_afterwards_even_after_an_error(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with prepacked(model, 48):
        assert packed_layers(model)
    with pytest.raises(ZeroDivisionError), prepacked(model, 48):
        raise ZeroDivisionError
    assert not packed_layers(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(input_ids=torch.arange(7)[None], labels=torch.arange(7)[None]).loss.backward()
    assert model.model.layers[0].mlp.gate_proj.weight.grad is not None


def test_weights_are_packed_anew_each_time(model: Any) -> None:
    with prepacked(model, 48):
        first = logits(model)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(3)
    plain = logits(model)
    assert not torch.allclose(first, plain)
    with prepacked(model, 48):
        torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=1e-5)


def test_adapters_are_computed_too(model: Any) -> None:
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    plain = logits(adapted)
    with prepacked(adapted, 48):
        assert any(name.endswith("q_proj.base_layer") for name in packed_layers(adapted))
        torch.testing.assert_close(logits(adapted), plain, rtol=1e-4, atol=1e-4)


def test_what_has_nothing_to_gain_or_no_kernel_stays_plain(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_WEIGHTS", 10**9)
    prepack(model, 48)
    assert not packed_layers(model)
    monkeypatch.setattr(module, "_LEAST_WEIGHTS", 1)
    with torch.backends.mkldnn.flags(enabled=False), prepacked(model, 48):
        assert not packed_layers(model)
    with prepacked(model.double(), 48):
        assert not packed_layers(model)
    with prepacked(model.to("meta"), 48):
        assert not packed_layers(model)


@pytest.fixture(params=[True, False], ids=["with-bfloat16", "without"])
def has(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU multiplies bfloat16: what this one does not say of itself is stood in for by plain products."""
    if bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) != request.param:
        stand_in = SimpleNamespace(
            _is_mkldnn_bf16_supported=lambda: request.param,
            _reorder_linear_weight=lambda weight, rows: weight,
            _linear_pointwise=lambda x, weight, bias, *_: nn.functional.linear(x, weight, bias),
        )
        monkeypatch.setattr(module, "_ops", stand_in)
    return request.param


def test_bfloat16_is_packed_only_where_the_cpu_multiplies_it(model: Any, has: bool) -> None:
    plain = logits(model.bfloat16())
    prepack(model, 48)
    assert bool(packed_layers(model)) == has
    torch.testing.assert_close(logits(model), plain, rtol=0.05, atol=0.05)


def test_under_autocast_products_are_in_its_format_as_plain_ones_are(model: Any, has: bool) -> None:
    """Trainers wrap a model's forward so; some activations then come in bfloat16, others in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        plain = logits(model)
    with prepacked(model, 48):
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = logits(model)
        gate = model.model.layers[0].mlp.gate_proj
        assert packed_layers(model)
        assert set(gate.forward._laid_out) == ({torch.bfloat16} if has else set())
        torch.testing.assert_close(logits(model), logits(model), rtol=0, atol=0)
        assert torch.float32 in gate.forward._laid_out
    assert under_autocast.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(under_autocast, plain, rtol=0.05, atol=0.05)
