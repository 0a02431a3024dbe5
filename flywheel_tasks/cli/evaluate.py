"""``flywheel evaluate``: measurements that are no stage of the generation."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Measurements beside the generation.")
console = Console(highlight=False)


@app.callback()
def _group() -> None:
    """Keep the command's name even while there is only one."""


def _cell(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.3f} to {estimate['high']:.3f})"
    return f"{estimate['value']:.3f}{interval}"


@app.command("lm-eval")
def lm_eval(
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, with commas: arc_easy,hellaswag,ifeval.")],
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The candidate.")] = Path(
        "models/policy"
    ),
    against: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="To compare with, e.g. inputs/champion.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task; all without it.")] = None,
    include: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of task files of your own.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Put questions into the chat template.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write all figures as JSON.", dir_okay=False)] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder of params.yaml.", file_okay=False)] = Path(),
) -> None:
    """Community benchmarks of candidate and champion by lm-eval (optional: pip install '.[lm-eval]')."""
    from flywheel_tasks.evaluation.community import run_benchmarks
    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.storage.documents import write_json

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    compute = load_settings(root / "params.yaml").compute
    found = run_benchmarks(model, against, names, compute=compute, limit=limit, include=include, chat=chat)
    table = Table("task", "metric", "candidate (95% interval)", "champion", "difference, paired", "questions")
    for task, metrics in found["tasks"].items():
        for metric, row in metrics.items():
            cells = [_cell(row.get(side)) for side in ("candidate", "champion", "difference")]
            table.add_row(task, metric, *cells, str(row["candidate"]["n"]))
    console.print(table)
    if out is not None:
        write_json(found, out)
        console.print(f"written: {out}")
