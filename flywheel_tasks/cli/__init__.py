"""The ``flywheel`` command."""

from flywheel_tasks.cli.app import main

__all__ = ["main"]
