"""``flywheel ab``: the A/B test of the candidate."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

app = typer.Typer(no_args_is_help=True, help="The A/B test of the candidate.")
console = Console(highlight=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]
By = Annotated[str, typer.Option("--by", help="Your name, for the history.")]


@app.command()
def start(by: By, root: Root = Path()) -> None:
    """Start the test of launch/plan.json; its launch must have been approved."""
    from flywheel_tasks.online.launch import start as start_test

    experiment = start_test(root.resolve(), by=by)
    console.print(
        f"Experiment {experiment.plan.experiment} runs until {experiment.ends_at:%Y-%m-%d %H:%M} UTC"
    )


@app.command()
def status(root: Root = Path()) -> None:
    """Show the running test: its arms, and how much time is left."""
    from flywheel_tasks.online.approval import registry_of

    running = registry_of(root.resolve()).state().running()
    if running is None:
        console.print("No experiment is running.")
        return
    left = (running.ends_at - datetime.now(UTC)).total_seconds() / 60
    ends = f"{left:.0f} minutes left" if left > 0 else "over: flywheel ab analyze"
    console.print(f"Experiment {running.plan.experiment} (started by {running.started_by}): {ends}")
    for arm in running.plan.arms:
        console.print(f"  {arm.name}: {arm.model}, {arm.share:.1%} of users, {arm.digest}")


@app.command()
def simulate(root: Root = Path()) -> None:
    """Let simulated users talk to both arms, as the demo does."""
    from flywheel_tasks.online.simulated import simulate_ab

    simulate_ab(root.resolve())


@app.command()
def analyze(by: By, root: Root = Path()) -> None:
    """Analyse the running test from the logs and record the result; exit code 3 if it is invalid."""
    from flywheel_tasks.online.analysis import analyse
    from flywheel_tasks.online.analysis_text import analysis_markdown
    from flywheel_tasks.online.approval import ApprovalError, registry_of

    running = registry_of(root.resolve()).state().running()
    if running is None:
        raise ApprovalError("no experiment is running")
    found = analyse(root.resolve(), running.plan.generation, by=by)
    console.print(Markdown(analysis_markdown(found)))
    if found["result"] != "valid":
        raise typer.Exit(3)
    console.print("Next: flywheel approve promotion --by NAME")
