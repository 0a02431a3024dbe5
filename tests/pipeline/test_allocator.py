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
before = faults()
for megabytes in range(1, 31):
    torch.ones(megabytes * 250_000)
print(faults() - before)
"""


def test_what_is_set_already_stays():
    told = large_pages("glibc.malloc.top_pad=1:glibc.malloc.check=0").split(":")
    assert told[:2] == ["glibc.malloc.top_pad=1", "glibc.malloc.check=0"]
    assert sum(part.startswith("glibc.malloc.top_pad=") for part in told) == 1
    assert large_pages(large_pages()) == large_pages()


def _faults(environment: dict[str, str]) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_stages_do_not_give_memory_back_and_ask_for_it_anew():
    """Page faults of tensors of 1 to 30 MB: 100,000 by glibc's defaults, few with pages that stay.

    How few depends on the machine: where its memory is in pieces there are no large pages to be had, and a block that
    lands elsewhere on the heap costs thousands of small ones once.
    """
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    assert _faults(runner.environment()) < _faults(plain) / 4


_COMMAND = """
import os, sys
from flywheel_tasks.cli import app, main
print(os.getpid(), flush=True)
app.app = lambda: print(os.environ.get("GLIBC_TUNABLES", ""))
main()
"""


@pytest.mark.parametrize(("command", "times"), [("score", 2), ("stage", 2), ("settings", 1)])
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
