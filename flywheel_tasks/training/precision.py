"""Where and in which number format torch computes."""

import re
from functools import cache
from pathlib import Path

import torch

from flywheel_tasks.settings import Compute

_CPUINFO = Path("/proc/cpuinfo")


def device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def cpu_has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX-BF16).

    Without such instructions bfloat16 is emulated and slower than float32.

    Args:
        cpuinfo: the kernel's list of CPU flags; a missing file means no.
    """
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.group(1).split())


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
