"""The vocabulary projection at learned tokens only, on a CPU too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import trl.trainer.utils


def _everywhere(device: torch.device) -> bool:
    return True


@contextmanager
def vocabulary_at_labels() -> Iterator[None]:
    """Let TRL's fused head skip positions without a label, as it does on a GPU.

    TRL asks ``_use_triton`` whether the number of positions may differ from batch to batch; on a CPU it may,
    for nothing is compiled for a shape. Prompts are most of a row and the vocabulary a fifth of a small
    model, so this saves about a quarter of a step. Only this question is answered otherwise; the kernels
    ask their own module.
    """
    original = trl.trainer.utils._use_triton
    trl.trainer.utils._use_triton = _everywhere
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = original
