"""``flywheel campaign``: several launches in a row on simulated people, unattended."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    no_args_is_help=True, help="Launches in a row on simulated people, unattended, and their table."
)
console = Console(highlight=False, soft_wrap=True)

Root = Annotated[Path, typer.Option("--root", help="The project: code and settings.", file_okay=False)]
Home = Annotated[
    Path | None,
    typer.Option("--folder", help="Of the campaign; default: campaigns/default.", file_okay=False),
]
_NO_CEILING = "campaigns/without-ceiling"
_CACHE = "campaigns/cache"  # DVC's, of all campaigns of a project


def _home(root: Path, folder: Path | None, name: str = "campaigns/default") -> Any:
    from flywheel_tasks.campaign.folder import Folder

    return Folder((folder or root / name).resolve())


def _plan(root: Path) -> Any:
    from flywheel_tasks.campaign.panels import check_people
    from flywheel_tasks.settings import load_settings

    plan = load_settings(root / "params.yaml").campaign
    check_people(plan.panel_users)
    return plan


def _written(place: Any, beside: Sequence[Path] = ()) -> str:
    """Write a campaign's tables into its results; they as Markdown."""
    from flywheel_tasks.campaign.ablations import marked, others
    from flywheel_tasks.campaign.folder import differences
    from flywheel_tasks.campaign.page import write
    from flywheel_tasks.campaign.table import document
    from flywheel_tasks.campaign.text import markdown

    found, more = document(place), others(place)
    for path in beside:
        other = _begun(_home(Path(), path))
        more[marked(path.name, differences(place, other))] = document(other)
    write(place.results, found, more)
    return markdown(found, more)


def _show(place: Any, tables: str) -> None:
    console.print(Markdown(tables) if console.is_terminal else Text(tables))
    console.print(f"{place.results / 'campaign.html'}, and .md and .json beside it")


def _begun(folder: Any) -> Any:
    from flywheel_tasks.campaign.folder import CampaignError

    if not folder.plan.exists():
        raise CampaignError(f"{folder.home}: no campaign was begun here: flywheel campaign run")
    return folder


def _drive(folder: Any) -> None:
    """Run a campaign in a process whose code is the campaign's own copy."""
    from flywheel_tasks.campaign.drive import environment
    from flywheel_tasks.pipeline.process import die_with_parent

    command = [sys.executable, "-m", "flywheel_tasks.cli", "campaign", "drive", str(folder.home)]
    done = subprocess.run(
        command, cwd=folder.workspace, env=environment(folder), check=False, preexec_fn=die_with_parent
    )
    if done.returncode:
        raise typer.Exit(done.returncode)


@app.command()
def run(
    root: Root = Path(),
    folder: Home = None,
    without_ceiling: Annotated[
        bool,
        typer.Option(
            "--without-ceiling",
            help=f"The gate's limit on a high win rate is open, and RL keeps to no safe distance; {_NO_CEILING}.",
        ),
    ] = False,
    as_begun: Annotated[
        bool,
        typer.Option(
            "--as-begun", help="Go on with the settings it was begun with, whatever params.yaml says now."
        ),
    ] = False,
) -> None:
    """Run the campaign of params.yaml, or go on with it after a stop."""
    from flywheel_tasks.campaign.folder import create

    home = _home(root, folder, _NO_CEILING if without_ceiling else "campaigns/default")
    if as_begun:
        _drive(_begun(home))
        return
    plan = _plan(root).model_dump(mode="json")
    if without_ceiling:
        plan |= {"ceiling": False, "overlay": plan["overlay"] | plan["without_ceiling"]}
    create(home, root.resolve(), plan, root / _CACHE)
    _drive(home)


@app.command(hidden=True)
def drive(home: Path) -> None:
    """Run a campaign that was begun; called by run, with the campaign's own copy of the code."""
    from flywheel_tasks.campaign.drive import run as go
    from flywheel_tasks.pipeline.process import die_with_parent

    die_with_parent()
    place = _begun(_home(Path(), home))
    go(place, lambda line: console.print(line, markup=False), lambda: _written(place))
    _show(place, _written(place))


@app.command()
def ablate(
    root: Root = Path(),
    folder: Home = None,
    only: Annotated[str | None, typer.Option(help="Name of one ablation.")] = None,
) -> None:
    """Run the first two generations with something left out, for each of campaign.ablations."""
    from flywheel_tasks.campaign.ablations import begin

    for ablation in begin(_home(root, folder), root.resolve(), _plan(root), only, root / _CACHE):
        console.print(f"Ablation {ablation.home.name}")
        _drive(ablation)
    if _home(root, folder).plan.exists():
        table(root, folder)


@app.command()
def status(root: Root = Path(), folder: Home = None) -> None:
    """Show how far a campaign is."""
    from flywheel_tasks.campaign.clock import words_of
    from flywheel_tasks.campaign.drive import status as look

    place = _begun(_home(root, folder))
    found = look(place)
    grid = Table(title="Generations that are over", title_justify="left")
    for heading in ("generation", "gate", "what became of it", "why"):
        grid.add_column(heading)
    for record in found["generations"]:
        grid.add_row(record["generation"], record["verdict"], record["decision"], Text(record["why"]))
    console.print(grid)
    left = "It is over." if found["over"] else f"About {words_of(found['seconds_left'])} left."
    console.print(f"{found['launches']} of {found['wanted']} launches. {left}")
    if found["now"]:
        ran = "" if found["running"] else "stopped in: "
        now = found["now"]
        console.print(f"{now['generation']}: {ran}{now['step']}, since {now['since']}", markup=False)
    if not found["over"] and not found["running"]:
        console.print("It does not run now; this goes on with it:")
        console.print(f"flywheel campaign run --as-begun --folder {place.home}", markup=False)


@app.command()
def table(
    root: Root = Path(),
    folder: Home = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", help="Folder of another campaign; may be given again.")
    ] = None,
) -> None:
    """Print a campaign's tables, and write them as JSON, Markdown and HTML into its results."""
    place = _begun(_home(root, folder))
    _show(place, _written(place, beside or ()))
