"""``flywheel import``: public data sets into this project's own formats."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from flywheel_tasks.traffic.importers import Imported

app = typer.Typer(no_args_is_help=True, help="Bring public data sets into this project's own formats.")
_console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
_SHOWN = 20  # skipped rows that are listed

File = Annotated[
    Path, typer.Argument(help="The data set's file.", exists=True, dir_okay=False, readable=True)
]
Logs = Annotated[Path, typer.Option("--out", help="Folder of logs; partitions are written below it.")]
Start = Annotated[
    datetime, typer.Option(formats=["%Y-%m-%d"], help="Day of the first event: the set has none.")
]
Source = Annotated[
    Literal["internal", "user"],
    typer.Option(
        help="Traffic that the events count as. The gate needs prompts of both: import a part as the other."
    ),
]
_START = datetime(2026, 1, 1, tzinfo=UTC)


def _fail(message: str) -> typer.Exit:
    _console.print(f"Error: {message}")
    return typer.Exit(1)


def _report(imported: "Imported", what: str, file: Path) -> None:
    """List skipped rows; no rows at all is an error."""
    for row in imported.skipped[:_SHOWN]:
        _console.print(str(row))
    if len(imported.skipped) > _SHOWN:
        _console.print(f"... and {len(imported.skipped) - _SHOWN} more")
    if not imported.rows:
        raise _fail(f"{file}: no {what} found ({len(imported.skipped)} rows skipped)")
    typer.echo(f"{len(imported.rows)} {what}, {len(imported.skipped)} rows skipped")


@app.command("hh-rlhf")
def hh_rlhf(
    file: File, out: Annotated[Path, typer.Option(help="Parquet file of preference pairs.", dir_okay=False)]
) -> None:
    """Preference transcripts (JSON Lines of chosen and rejected, .gz or not) to preference pairs."""
    from flywheel_tasks.annotation.schemas import PAIRS
    from flywheel_tasks.storage.tables import write_rows
    from flywheel_tasks.traffic.importers import ImportFormatError, read_hh_rlhf

    try:
        imported = read_hh_rlhf(file)
        _report(imported, "preference pairs", file)
        write_rows(imported.rows, PAIRS, out)
    except (ImportFormatError, OSError) as error:
        raise _fail(str(error)) from error
    typer.echo(f"written: {out}")


def _write_logs(imported: "Imported", out: Path, name: str) -> None:
    from flywheel_tasks.traffic.importers import write_partitions

    for path in write_partitions(imported.rows, out, f"{name}-{imported.mark}"):
        typer.echo(f"written: {path}")


@app.command("persona-chat")
def persona_chat(file: File, out: Logs, start: Start = _START, source: Source = "internal") -> None:
    """Synthetic-Persona-Chat CSV to logs: personas as cards, conversations with made-up times."""
    from flywheel_tasks.traffic.importers import ImportFormatError, read_persona_chat

    try:
        imported = read_persona_chat(file, start=start.date(), source=source)
        _report(imported, "log events", file)
        _write_logs(imported, out, "persona-chat")
    except (ImportFormatError, OSError) as error:
        raise _fail(str(error)) from error


@app.command("rpbench")
def rpbench(file: File, out: Logs, start: Start = _START, source: Source = "internal") -> None:
    """RPBench-Auto characters.jsonl to logs: characters as cards."""
    from flywheel_tasks.traffic.importers import ImportFormatError, read_rpbench

    try:
        imported = read_rpbench(file, start=start.date(), source=source)
        _report(imported, "log events", file)
        _write_logs(imported, out, "rpbench")
    except (ImportFormatError, OSError) as error:
        raise _fail(str(error)) from error
