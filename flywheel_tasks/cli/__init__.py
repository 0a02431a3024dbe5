"""The ``flywheel`` command."""

import sys

from flywheel_tasks.pipeline.allocator import begin_again_with_large_pages

_COMPUTE = ("rm", "score", "serve", "simulate", "stage")  # with a model, in this process

__all__ = ["main"]


def main() -> None:
    """Entry point, see :func:`flywheel_tasks.cli.app.main`."""
    if sys.argv[1:2] and sys.argv[1] in _COMPUTE:
        begin_again_with_large_pages()
    from flywheel_tasks.cli import app  # only now: what begins again need not load all commands twice

    app.main()
