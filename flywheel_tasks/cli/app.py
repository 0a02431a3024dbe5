"""The root of the command line: errors of ours are one clear message, not a trace."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]


@app.callback()
def _root() -> None:
    """Turn real chat traffic into a better character-chat model, every week, safely."""


@app.command()
def stage(name: str, root: Root = Path()) -> None:
    """Run one stage's work in this process (what the commands in dvc.yaml call)."""
    from flywheel_tasks.pipeline.stage import die_with_parent, run_stage

    die_with_parent()
    run_stage(name, root.resolve())


def main() -> None:
    """Entry point."""
    app()
    sys.exit(0)
