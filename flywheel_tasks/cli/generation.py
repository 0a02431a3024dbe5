"""``flywheel generation``: open and run generations on this machine."""

from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(no_args_is_help=True, help="Open and run generations on this machine.")
console = Console()

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]
Id = Annotated[str | None, typer.Option("--id", help="e.g. g0002; by default the open one, or the next.")]
NewId = Annotated[
    str | None, typer.Option("--id", help="e.g. g0002; by default the next, with the logs of today.")
]
Seed = Annotated[int | None, typer.Option(help="Written into params.yaml first.")]


_MARKS = {"pass": "[green]pass[/]", "warn": "[yellow]WARN[/]", "block": "[red]BLOCK[/]"}


def _show_verdict(verdict: dict[str, Any]) -> None:
    console.print(f"[bold]Gate of {verdict['generation']}: {verdict['verdict'].upper()}[/]")
    table = Table.grid(padding=(0, 1))
    for reason in verdict["reasons"]:
        table.add_row(_MARKS[reason["outcome"]], Text(reason["reason"]))
    console.print(table)


def _run(root: Path, generation: str | None, seed: int | None) -> None:
    from flywheel_tasks.pipeline.local import run_generation

    outcome = run_generation(root.resolve(), generation=generation, seed=seed, say=console.print)
    if outcome.labels is not None:
        from flywheel_tasks.cli.annotation import show_status

        show_status(outcome.labels)
        console.print(
            "People label this generation: [bold]flywheel annotation export | push | pull | status[/], then run this."
        )
        return
    _show_verdict(outcome.verdict)
    console.print("Report: gate/report.html    Figures: dvc metrics show, dvc plots show")
    if outcome.status == "blocked":
        console.print("[red]The gate blocks this model: nothing is launched.[/]")
        raise typer.Exit(3)
    if (no := outcome.answer) is not None:
        said = f"{no.decision} by {no.by}, {no.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        console.print(Text(f"The launch was not approved: {said}. Nothing is launched.", style="red"))
        console.print("Next: [bold]flywheel generation next[/]. A later yes counts: flywheel approve launch.")
        raise typer.Exit(3)
    if outcome.status == "waiting":
        console.print(
            "Waiting for a person: [bold]flywheel approve launch --by NAME[/], then run this again."
        )
        return
    console.print(
        f"Experiment [bold]{outcome.experiment}[/] is up: flywheel ab status, flywheel registry show"
    )


@app.command()
def run(root: Root = Path(), id_: Id = None, seed: Seed = None) -> None:
    """Run a generation from logs to a launched A/B test; what is done already is not done again."""
    _run(root, id_, seed)


@app.command("next")
def next_(root: Root = Path(), seed: Seed = None) -> None:
    """Open the next generation, from the champion and the newest logs, and run it."""
    from flywheel_tasks.pipeline.generation_ids import next_id
    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.storage.registry import open_registry

    settings = load_settings(root / "params.yaml")
    _run(root, next_id(root, open_registry(settings.registry.location, root)), seed)


@app.command("open")
def open_(root: Root = Path(), id_: NewId = None, seed: Seed = None) -> None:
    """Pin the champion and the newest logs into inputs/, and print the generation's id."""
    from flywheel_tasks.pipeline.generation import open_generation

    console.print(open_generation(root.resolve(), generation=id_, seed=seed))


@app.command()
def sync(generation: str, root: Root = Path()) -> None:
    """Bring inputs/ and params.yaml to what a generation was opened with."""
    from flywheel_tasks.pipeline.generation import sync as bring

    bring(root.resolve(), generation)
