"""Training steps of a model with adapters on a CPU, without what a CPU is slow at.

Under bfloat16 autocast a step of a small model spends most of its time beside the products of matrices: torch's fused
attention is slow backwards on a CPU, every frozen weight is cast anew at each product, and peft goes through float32
around each adapter. Within :func:`fast_steps` attention is computed in its plain form, frozen weights are kept in the
format that autocast casts them to anyway, and an adapter's product is added in one operation. Results differ by
rounding alone.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from flywheel_tasks.pipeline.launcher import processes
from flywheel_tasks.training.forwards import replaced_forwards

# Of attention, kept until the step is over: scores and probabilities in two formats are 10; rows of packed replies, and
# those of pairs, have up to twice as many as rows and their lengths say.
_BYTES_A_WEIGHT = 20
_MOST_BYTES = 4e9


# Models whose attention is plain now, and would be fused otherwise.
_plain: "WeakSet[PreTrainedModel]" = WeakSet()


@contextmanager
def fast_steps(model: nn.Module, *, bfloat16: bool, rows: int, longest: int | None) -> Iterator[None]:
    """Within it, training steps of a model with adapters are faster on a CPU; afterwards it is as it was.

    Nothing changes on a GPU, in float32, with several processes, or for a model that is trained in full; attention
    stays as it is where its plain form might keep more than 4 GB, or nobody knows how much.

    Args:
        model: in memory, with its adapters, on its device.
        bfloat16: whether steps run under bfloat16 autocast.
        rows: of a step.
        longest: most tokens of a row; None if that is not known.
    """
    on_cpu = all(weight.device.type == "cpu" for weight in model.parameters())
    if not (on_cpu and bfloat16 and isinstance(model, PeftModel) and processes() == 1):
        yield
        return
    weights = math.inf if longest is None else rows * longest**2
    with _plain_attention(model, weights), _frozen_in_bfloat16(model), _lean_adapters(model):
        yield


@contextmanager
def _plain_attention(model: PeftModel, weights: float) -> Iterator[None]:
    """torch's own attention instead of its fused one, for so many attention weights of a head and step."""
    whole = model.get_base_model()
    assert isinstance(whole, PreTrainedModel)
    before = whole.config._attn_implementation
    text = whole.config.get_text_config()
    kept = weights * text.num_attention_heads * text.num_hidden_layers * _BYTES_A_WEIGHT
    if before == "sdpa" and kept <= _MOST_BYTES and whole._can_set_attn_implementation():
        whole.set_attn_implementation("eager")
        _plain.add(whole)
    try:
        yield
    finally:
        if whole in _plain:
            _plain.remove(whole)
            whole.set_attn_implementation(before)


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Within it, a model draws replies with fused attention, also within :func:`fast_steps`.

    It is fast forwards, and plain attention takes nearly twice the time for a token after the other.

    Args:
        model: with its adapters or without.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    if not (isinstance(whole, PreTrainedModel) and whole in _plain):
        yield
        return
    whole.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        whole.set_attn_implementation("eager")


@contextmanager
def _frozen_in_bfloat16(model: PeftModel) -> Iterator[None]:
    """Frozen weights of linear layers, but the one of the vocabulary, which may be the embedding too."""
    whole = model.get_base_model()
    assert isinstance(whole, PreTrainedModel)
    vocabulary = whole.get_output_embeddings()
    kept: list[tuple[nn.Linear, Any]] = []
    try:
        for layer in model.modules():
            if type(layer) is nn.Linear and layer is not vocabulary and not layer.weight.requires_grad:
                kept.append((layer, layer.weight))
                layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)
        yield
    finally:
        for layer, weight in kept:
            layer.weight = weight


class _Lean:
    """peft's forward of a plain adapter, ``W x + s B A x``, in autocast's format, with nothing cast back and forth."""

    def __init__(self, layer: LoraLinear, adapter: str) -> None:
        self._layer, self._adapter = layer, adapter

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        plain = not (args or kwargs or layer.disable_adapters or layer.merged)
        if not (plain and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return LoraLinear.forward(layer, x, *args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu")
        rows = x.to(dtype).flatten(0, -2)
        adapter: list[Any] = [part[self._adapter].weight for part in (layer.lora_A, layer.lora_B)]
        first, second = (weight.to(dtype) for weight in adapter)
        inner = nn.functional.linear(rows, first) * layer.scaling[self._adapter]
        whole = torch.addmm(layer.base_layer(rows), inner, second.t())
        return whole.view(*x.shape[:-1], -1)


def _is_plain(layer: LoraLinear) -> bool:
    """One adapter on a linear layer, without dropout, biases or a variant of the method."""
    adapters = layer.active_adapters
    if len(adapters) != 1 or adapters[0] not in layer.lora_A or layer.lora_variant:
        return False
    parts = layer.lora_A[adapters[0]], layer.lora_B[adapters[0]]
    no_bias = all(type(part) is nn.Linear and part.bias is None for part in parts)
    no_dropout = isinstance(layer.lora_dropout[adapters[0]], nn.Identity)
    return no_bias and no_dropout and type(layer.base_layer) is nn.Linear


def _lean_adapters(model: PeftModel) -> AbstractContextManager[None]:
    layers = [layer for layer in model.modules() if type(layer) is LoraLinear and _is_plain(layer)]
    return replaced_forwards({layer: _Lean(layer, layer.active_adapters[0]) for layer in layers})
