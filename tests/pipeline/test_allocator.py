"""Processes that compute keep their memory, in large pages."""

import subprocess
import sys

import pytest

from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.allocator import large_pages

FAULTS = """
import resource
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.set_num_threads(1)
for _ in range(3):
    torch.ones(4_000_000)  # 16 MB
before = faults()
for _ in range(50):
    torch.ones(4_000_000)
print(faults() - before)
"""


def test_what_is_set_already_stays():
    told = large_pages("glibc.malloc.top_pad=1:glibc.malloc.check=0").split(":")
    assert told[:2] == ["glibc.malloc.top_pad=1", "glibc.malloc.check=0"]
    assert sum(part.startswith("glibc.malloc.top_pad=") for part in told) == 1
    assert large_pages(large_pages()) == large_pages()


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_stages_do_not_give_memory_back_and_ask_for_it_anew():
    """Page faults of fifty tensors of 16 MB: 27,000 by glibc's defaults, a few with pages that stay."""
    command = [sys.executable, "-c", FAULTS]
    ran = subprocess.run(command, env=runner.environment(), capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1000
