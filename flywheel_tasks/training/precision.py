"""Where and in which number format torch computes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from flywheel_tasks.settings import Compute

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as the kernel names them; the last one on ARM
# Without a workspace of its own for each stream cuBLAS may add up in another order in each run; it is read before the
# first product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def cpu_has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX-BF16; on ARM FEAT_BF16).

    Without such instructions bfloat16 is emulated and slower than float32.

    Args:
        cpuinfo: the kernel's list of CPU flags; a missing file means no.
    """
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return flags is not None and not _BFLOAT16.isdisjoint(flags.group(1).split())


def resolve_dtype(compute: Compute) -> torch.dtype:
    """The number format to compute in; weights are kept and saved as float32 either way.

    Args:
        compute: ``precision`` auto means bfloat16 where the device has it in hardware, else float32.
    """
    if compute.precision == "float32":
        return torch.float32
    if compute.precision == "bfloat16":
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def set_threads(compute: Compute) -> None:
    """Use the configured number of torch threads on a CPU: results depend on it, so it is a setting."""
    torch.set_num_threads(compute.threads)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within it, a GPU computes the same bits in every run, as a CPU does anyway.

    By default some CUDA kernels (the backward pass of attention with a mask, sums over an index) add up in whatever
    order their threads finish: a run that was killed and resumed would end with other weights. An operation that has
    no repeatable kernel is an error there.
    """
    if not torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
