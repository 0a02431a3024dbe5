"""Whether two model folders hold the same weights, however they were saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_RELATIVE = 2.0**-7  # twice the step of bfloat16: a copy in it differs by rounding
_SHARED = 0.5  # of the names of the smaller one: heads may differ, and names that a library ties


def _open(folder: Path) -> dict[str, Any]:
    """The tensors of a folder by name, not read yet."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, framework="pt")
        found |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def _rows(tensor: Any) -> Iterator[torch.Tensor]:
    shape = tensor.get_shape()
    if len(shape) < 2:
        yield tensor[:].float() if shape else torch.zeros(0)
        return
    for row in sorted({0, shape[0] // 2, shape[0] - 1}):
        yield tensor[row : row + 1].float()


def same_weights(first: Path, second: Path) -> bool:
    """Whether two models are the same one, perhaps in another precision or other files.

    They are, if at least half of their tensors go by the same names and shapes (a vocabulary may be padded, a head
    another), and all these are equal, but for rounding, in three rows each. So a large model is not read as a whole.

    Args:
        first: folder of ``*.safetensors``.
        second: the same.
    """
    one, other = _open(first), _open(second)
    shared = sorted(
        name for name in one.keys() & other.keys() if one[name].get_shape() == other[name].get_shape()
    )
    if len(shared) < max(1, _SHARED * min(len(one), len(other))):
        return False
    for name in shared:
        for a, b in zip(_rows(one[name]), _rows(other[name]), strict=True):
            if not torch.allclose(a, b, rtol=_RELATIVE, atol=1e-6):
                return False
    return True
