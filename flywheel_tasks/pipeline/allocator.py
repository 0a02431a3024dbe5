"""Memory in large pages, kept by the process: how the C library is told, before a process begins.

A training or decoding step makes thousands of tensors and drops them again. By default glibc gives large ones back to
the kernel each time and gets them anew, page by page of 4 KiB; and a virtual machine looks up every page twice. With
pages of 2 MiB that stay in the process, decoding with the default model took about half the time, a training step two
thirds (docs/policy-training.md, "On a CPU"). Where the kernel has no large pages or the C library is another, nothing
changes.
"""

import os
import sys

# https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html; the threshold is the largest
# that every version of glibc takes, and set at all so that it does not move.
_TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # ask for transparent large pages
    "glibc.malloc.mmap_threshold": 32 << 20,
    "glibc.malloc.trim_threshold": 16 << 30,
    "glibc.malloc.top_pad": 256 << 20,  # grow by so much, or the pages asked for are too few to be large
}


def large_pages(tunables: str = "") -> str:
    """The value of the environment variable ``GLIBC_TUNABLES`` for processes that compute.

    Args:
        tunables: the variable's value so far; what it sets stays.
    """
    told = [part for part in tunables.split(":") if part]
    names = {part.partition("=")[0] for part in told}
    return ":".join([*told, *(f"{name}={value}" for name, value in _TUNABLES.items() if name not in names)])


def begin_again_with_large_pages() -> None:
    """Put this process in its own place, with the same arguments, unless it was begun with :func:`large_pages`."""
    told = os.environ.get("GLIBC_TUNABLES", "")
    if (wanted := large_pages(told)) != told:
        os.execve(  # noqa: S606 - this very command
            sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": wanted}
        )
