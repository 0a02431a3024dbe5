"""``python -m flywheel_tasks.cli``."""

from flywheel_tasks.cli import main

main()
