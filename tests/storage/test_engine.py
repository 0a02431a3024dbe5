import os

import pytest

from flywheel_tasks.storage.engine import threads_within


@pytest.mark.parametrize(
    ("cores", "memory", "threads"), [(16, 300, 2), (2, 3000, 2), (16, 3000, 16), (4, 60, 1)]
)
def test_no_more_threads_than_cores_and_memory_allow(
    cores: int, memory: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert threads_within(memory, 125) == threads
