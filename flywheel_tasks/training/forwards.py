"""Layers that compute otherwise for a while."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced_forwards(products: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it, each layer computes by the function that stands for it; afterwards, also after an error, by its own.

    Args:
        products: what stands for the ``forward`` of each layer; no layer has one of its own, beside its class's, yet.
    """
    try:
        for layer, product in products.items():
            vars(layer)["forward"] = product
        yield
    finally:
        for layer in products:
            vars(layer).pop("forward", None)
