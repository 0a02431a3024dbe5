"""The root of the command line. Errors that we raise are one clear message; only defects show a trace."""

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from flywheel_tasks.cli import forget, registry, score

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]

for _name, _module in (
    ("generation", "generation"),
    ("registry", "registry"),
    ("annotation", "annotation"),
    ("ab", "ab"),
    ("campaign", "campaign"),
    ("contracts", "contracts"),
    ("import", "traffic"),
    ("rm", "reward_model"),
    ("evaluate", "evaluate"),
    ("simulate", "simulate"),
    ("users", "users"),
    ("airflow", "airflow"),
    ("serve", "serve"),
):
    app.add_typer(import_module(f"flywheel_tasks.cli.{_module}").app, name=_name)
app.add_typer(registry.approve_app, name="approve")
app.command("rollback")(registry.rollback)
app.command("forget")(forget.forget)
app.command("score")(score.score)


@app.callback()
def _root() -> None:
    """Turn real chat traffic into a better character-chat model, every week, safely."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


@app.command()
def stage(name: str, root: Root = Path()) -> None:
    """Run one stage's work (what the commands in dvc.yaml call)."""
    from flywheel_tasks.pipeline.process import die_with_parent

    die_with_parent()
    from flywheel_tasks.pipeline.stage import run_stage

    run_stage(name, root.resolve())


@app.command()
def settings(root: Root = Path()) -> None:
    """Check params.yaml and show every setting."""
    import yaml

    from flywheel_tasks.settings import load_settings

    shown = load_settings(root / "params.yaml").model_dump(mode="json", by_alias=True)
    typer.echo(yaml.safe_dump(shown, sort_keys=False).rstrip())


@app.command()
def stages(root: Root = Path()) -> None:
    """Print the table of all stages in Markdown, as docs/stages.md has it."""
    from flywheel_tasks.pipeline.describe import stages_table
    from flywheel_tasks.pipeline.graph import load_graph

    typer.echo(stages_table(load_graph(root / "dvc.yaml")), nl=False)


def main() -> None:
    """Entry point: a known kind of error becomes its message on standard error, and exit code 1."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if not type(error).__module__.startswith("flywheel_tasks"):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
