"""A page that shows tasks as annotators get them, without Label Studio."""

from flywheel_tasks.annotation.preview.page import write_preview

__all__ = ["write_preview"]
