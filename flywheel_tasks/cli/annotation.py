"""``flywheel annotation``: tasks out to annotators, labels in."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Tasks out to annotators, labels in (docs/annotation.md).")
console = Console(highlight=False)

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder for the files.", file_okay=False)], root: Root = Path()
) -> None:
    """Write the batch as Label Studio import files, each with its labelling interface."""
    from flywheel_tasks.annotation.round_trip import export as write
    from flywheel_tasks.annotation.round_trip import open_round

    work = open_round(root.resolve())
    table = Table("project", "tasks", "annotations a task", title=f"{out}", title_justify="left")
    for group in write(work.tasks, out):
        table.add_row(f"{group.name}.json, .xml", str(len(group.tasks)), str(group.reviews))
    console.print(table)
    console.print(
        "In Label Studio: one project for each file, its .xml as labelling interface, its .json as import. Export "
        f"the finished projects as JSON into [bold]{work.location}[/]."
    )


@app.command()
def preview(
    out: Annotated[Path, typer.Argument(help="HTML file to write.", dir_okay=False)],
    root: Root = Path(),
    most: Annotated[int, typer.Option(min=1, help="Tasks of each kind.")] = 5,
) -> None:
    """Write a page that shows tasks as annotators get them, without Label Studio."""
    from flywheel_tasks.annotation.preview import write_preview
    from flywheel_tasks.annotation.round_trip import open_round

    work = open_round(root.resolve())
    shown = write_preview(work.tasks, out, generation=work.generation, most=most)
    console.print(f"{shown} of {len(work.tasks)} tasks in {out}")


@app.command()
def push(root: Root = Path()) -> None:
    """Create the projects in Label Studio and import the tasks that they miss."""
    from flywheel_tasks.annotation.round_trip import open_round
    from flywheel_tasks.annotation.round_trip import push as send
    from flywheel_tasks.annotation.studio import Studio

    work = open_round(root.resolve())
    with Studio(work.settings.label_studio) as studio:
        rows = send(work, studio)
        url = studio.url
    table = Table("project", "tasks", "added", title=url, title_justify="left")
    for row in rows:
        table.add_row(
            f"{row['title']} ({url}/projects/{row['project']})", str(row["tasks"]), str(row["added"])
        )
    console.print(table)


@app.command()
def pull(root: Root = Path()) -> None:
    """Fetch the annotations from Label Studio, put them where labels are delivered, and pin them."""
    from flywheel_tasks.annotation import round_trip
    from flywheel_tasks.annotation.studio import Studio

    work = round_trip.open_round(root.resolve())
    with Studio(work.settings.label_studio) as studio:
        names = round_trip.pull(work, studio)
    console.print(f"{len(names)} export(s) in {work.location}: {', '.join(names)}")
    show_status(round_trip.status(work))


@app.command()
def delete(
    task_ids: Annotated[
        list[str], typer.Argument(help="Ids of tasks, as batch.jsonl and exports have them.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted.")] = False,
    root: Root = Path(),
) -> None:
    """Delete tasks, and what people entered for them, from the Label Studio projects of all generations.

    Of projects whose titles begin with label.label_studio.project. The next push brings tasks of the open batch back.
    """
    from flywheel_tasks.annotation.round_trip import delete_tasks
    from flywheel_tasks.annotation.studio import Studio
    from flywheel_tasks.settings import load_settings

    settings = load_settings(root.resolve() / "params.yaml").label.label_studio
    with Studio(settings) as studio:
        deleted = delete_tasks(settings, studio, task_ids, dry_run)
    done = "would be deleted" if dry_run else "deleted"
    console.print(f"{sum(deleted.values())} tasks {done}")
    for place, count in deleted.items():
        console.print(f"  {count} of {place}", markup=False)


@app.command()
def status(root: Root = Path()) -> None:
    """Show how far the labelling has come, by what is delivered; pins it."""
    from flywheel_tasks.annotation import round_trip

    show_status(round_trip.status(round_trip.open_round(root.resolve())))


@app.command()
def pin(root: Root = Path()) -> None:
    """Pin what is delivered by now in inputs/labels.json; stages that depend on it will run again."""
    from flywheel_tasks.pipeline.generation import refresh_labels

    document = refresh_labels(root.resolve())
    console.print(
        f"{len(document['files'])} file(s) of labels pinned (label.annotator: {document['annotator']})"
    )


def show_status(found: dict[str, Any]) -> None:
    """Print how far the labelling has come, with the first labels that were quarantined."""
    table = Table(title=f"{found['generation']}: labels in {found['location']}", title_justify="left")
    for heading in ("purpose", "tasks", "labelled", "several reviews", "all reviews"):
        table.add_column(heading, justify="left" if heading == "purpose" else "right")
    for purpose, row in found["purposes"].items():
        table.add_row(
            purpose,
            *(
                str(n)
                for n in (
                    row["labelled"] + row["unlabelled"],
                    row["labelled"],
                    row["multi_review"],
                    row["done"],
                )
            ),
        )
    console.print(table)
    console.print(
        f"{found['read']} labels read = {found['labels']} used + {len(found['quarantined'])} quarantined. "
        f"{found['done']:.0%} of the tasks are done: "
        + ("[green]enough, run the generation[/]" if found["enough"] else "not enough yet (label.min_done)")
    )
    for row in found["quarantined"][:10]:
        where = f"{row['file']}, {row['place']}, task {row['task_id']}, annotator {row['annotator']}"
        console.print(f"  {row['rule']}: {where}: {row['detail']}", markup=False)
    if (more := len(found["quarantined"]) - 10) > 0:
        console.print(f"  and {more} more")
