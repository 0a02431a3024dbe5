"""How many threads DuckDB gets: no more than its memory limit feeds."""

import os


def threads_within(memory_mb: int, each_mb: int) -> int:
    """Threads for an engine with a memory limit: one a core that this process may use, at least one.

    DuckDB takes one thread a core by default, and each holds buffers that cannot be spilled: with a limit that two
    threads keep to, sixteen end in an out-of-memory error.

    Args:
        memory_mb: the limit (MB).
        each_mb: what a thread is sure to get of it (MB).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, memory_mb // each_mb))
