"""Linear layers with prepacked weights, for inference on a CPU.

A CPU's kernels read a weight in blocks. torch lays it out for them anew at each product, which costs little where a
product has many rows, and a large share where it has a few dozen, as in sampling token by token; and what MKL chooses
for so few rows on a CPU of another maker is slow besides. Here oneDNN lays each weight out once (what
``torch.compile`` does with ``freezing``, without compiling anything).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flywheel_tasks.training.forwards import replaced_forwards

_ops: Any = torch.ops.mkldnn
_LEAST_WEIGHTS = 2**14  # a score head or an adapter of low rank has nothing to gain


def _kernel_for(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this number format on this CPU; emulated bfloat16 is left to torch."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(_ops._is_mkldnn_bf16_supported()))


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """Layers that gain: plain ones (not quantised, not sharded) whose weight is whole and on a CPU."""
    for layer in model.modules():
        if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
            continue
        weight = layer.weight
        if weight.device.type == "cpu" and weight.numel() >= _LEAST_WEIGHTS and _kernel_for(weight.dtype):
            yield layer


def _lay_out(layer: nn.Linear, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer for products of ``rows`` rows in ``dtype``, the weight as oneDNN reads it."""
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    weight: Tensor = _ops._reorder_linear_weight(layer.weight.detach().to(dtype).contiguous(), rows)
    return weight, bias


def _product(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = _ops._linear_pointwise(x.to(weight.dtype), weight, bias, "none", [], "")
    return product


class _InTraining:
    """Products of a layer of a model in training.

    Trainers call it under autocast, which multiplies in a number format of its own and hands on activations in it. So
    the format is known when a product is computed, and the weight is laid out then, once for each.
    """

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self._layer, self._rows = layer, rows
        self._laid_out: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else self._layer.weight.dtype
        if not _kernel_for(dtype):
            return nn.Linear.forward(self._layer, x)
        if dtype not in self._laid_out:
            self._laid_out[dtype] = _lay_out(self._layer, dtype, self._rows)
        weight, bias = self._laid_out[dtype]
        return _product(x, weight=weight, bias=bias)


@torch.no_grad()
def prepack(model: nn.Module, rows: int) -> None:
    """Lay a frozen model's weights out for good; the plain ones are let go, so that memory does not double.

    Products differ from plain ones by rounding alone. The model can neither be trained nor saved afterwards. On a
    GPU nothing changes.

    Args:
        model: in memory, on its device.
        rows: of a typical product; others are as right.
    """
    for layer in list(_layers(model)):
        weight, bias = _lay_out(layer, layer.weight.dtype, rows)
        layer.forward = partial(_product, weight=weight, bias=bias)  # type: ignore[method-assign]
        layer.weight = nn.Parameter(weight, requires_grad=False)


@contextmanager
def prepacked(model: nn.Module, rows: int) -> Iterator[None]:
    """Within it, a model in training has its weights laid out as :func:`prepack` does, for inference alone.

    Gradients do not pass, and a weight changed within it need have no effect before its end. Under autocast products
    are in autocast's number format, as plain ones are.

    Args:
        model: in memory, on its device.
        rows: of a typical product; others are as right.
    """
    with replaced_forwards({layer: _InTraining(layer, rows) for layer in _layers(model)}):
        yield
