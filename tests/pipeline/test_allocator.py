"""Processes that compute keep their memory, in large pages."""

import os
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


_COMMAND = """
import os, sys
from flywheel_tasks.cli import app, main
print(os.getpid(), flush=True)
app.app = lambda: print(os.environ.get("GLIBC_TUNABLES", ""))
main()
"""


@pytest.mark.parametrize(("command", "times"), [("score", 2), ("settings", 1)])
def test_a_command_that_computes_begins_again_with_them_once(command: str, times: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    said = subprocess.run(
        [sys.executable, "-c", _COMMAND, command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *pids, tunables = said.stdout.split("\n")[:-1]
    assert len(pids) == times
    assert len(set(pids)) == 1
    assert tunables == (large_pages() if times > 1 else "")
