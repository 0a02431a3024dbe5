"""Names of processes that no later process has, so that what a dead one left is not taken for a living one's.

A process id comes again: in a container that is started anew the gateway usually has the same one as before.
"""

import os
from pathlib import Path


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks since the machine did; None if it is dead (Linux: proc(5))."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else fields[18]


def process_name(pid: int | None = None) -> str:
    """The name of a process.

    Args:
        pid: its id; by default this one's.
    """
    pid = os.getpid() if pid is None else pid
    return f"{pid}-{_started(pid)}"


def lives(name: str) -> bool:
    """Whether the process of a name is still there; no other text is a process's name."""
    pid, _, started = name.partition("-")
    return pid.isdecimal() and _started(int(pid)) == started
