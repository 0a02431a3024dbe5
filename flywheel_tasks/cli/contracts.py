"""``flywheel contracts``: the data contracts on any file, and as a page."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flywheel_tasks.contracts.checking import Checked

app = typer.Typer(no_args_is_help=True, help="Run the data contracts on any file, or describe them.")
console = Console()

Root = Annotated[Path, typer.Option("--root", help="Workspace: the folder of dvc.yaml.", file_okay=False)]
_STYLES = {"pass": "green", "warn": "yellow", "block": "bold red"}
_WORDS = {"pass": "pass", "warn": "warning", "block": "BLOCKS"}
_LINES = 10  # unreadable lines that are listed


@app.command()
def describe(root: Root = Path()) -> None:
    """Print every table, column and rule in Markdown, as docs/contracts.md has it."""
    from flywheel_tasks.contracts.describe import describe_contracts
    from flywheel_tasks.contracts.load import load_contracts

    typer.echo(describe_contracts(load_contracts(root / "data_contracts")), nl=False)


@app.command()
def check(
    path: Annotated[
        Path, typer.Argument(help="A table (.parquet, .jsonl), a folder of tables, or raw logs.")
    ],
    table: Annotated[
        str | None, typer.Option(help="The contract; by default found by name and columns.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the result as a page.", dir_okay=False)] = None,
    against: Annotated[Path | None, typer.Option(help="A profile.json to measure drift from.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write the profile, to compare others with.", dir_okay=False)
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option(help="Write every line and row that is set aside (.parquet, .jsonl).", dir_okay=False),
    ] = None,
    max_share: Annotated[float | None, typer.Option(help="Rows that may be set aside (share).")] = None,
    root: Root = Path(),
) -> None:
    """Run the contracts on a file or folder; exit code 1 if something blocks."""
    from flywheel_tasks.contracts.checking import check as run
    from flywheel_tasks.contracts.checking import read_reference
    from flywheel_tasks.contracts.listing import check_ending, write_list
    from flywheel_tasks.settings import load_settings

    if quarantine is not None:
        check_ending(quarantine)
    limit = max_share
    if limit is None:
        limit = load_settings(root / "params.yaml").validate_.max_quarantine_share
    reference = read_reference(against) if against else None
    with TemporaryDirectory(prefix="flywheel-") as scratch:
        outcomes = run(path, root.resolve(), Path(scratch), table=table, reference=reference)
        listed = write_list(outcomes, quarantine) if quarantine is not None else 0
    problems = []
    for checked in outcomes:
        _show(checked)
        problems += checked.problems(limit)
    if html is not None:
        for number, checked in enumerate(outcomes):
            target = html if not number else html.with_name(f"{html.stem}-{number + 1}{html.suffix}")
            _write_page(checked, target, limit)
    if profile is not None:
        from flywheel_tasks.storage.documents import write_json

        tables = {name: of for c in reversed(outcomes) for name, of in c.validated.profile["tables"].items()}
        write_json({"format": outcomes[0].validated.profile["format"], "tables": tables}, profile)
        console.print(Text(f"written: {profile}"))
    if quarantine is not None:
        console.print(Text(f"written: {quarantine}, {listed:,} lines and rows that are set aside"))
    for problem in problems:
        console.print(Text(f"BLOCKED: {problem}", "red"))
    if problems:
        raise typer.Exit(1)


def _write_page(checked: "Checked", target: Path, limit: float) -> None:
    from flywheel_tasks.contracts.page import render_page
    from flywheel_tasks.storage.atomic import atomic_path

    problems = [text for text in checked.problems(limit) if text not in checked.validated.problems()]
    page = render_page(
        checked.validated,
        reference=checked.reference,
        compared_with="the given profile" if checked.reference else None,
        broken_lines=len(checked.unreadable) if checked.unreadable or checked.ingested else None,
        problems=problems,
        what=f"Data contracts: {Path(checked.what).name}",
        alone="No profile was given to compare distributions with.",
    )
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    console.print(Text(f"written: {target}"))


def _show(checked: "Checked") -> None:
    from flywheel_tasks.contracts.page import number, plain, share
    from flywheel_tasks.traffic.refused import other_names

    console.print(Text(checked.what, "bold"))
    if checked.ingested is not None:
        console.print(_counted(checked.ingested))
    for line in checked.unreadable[:_LINES]:
        rule = f"{line.rule}: " if checked.ingested is not None else ""
        console.print(Text(f"  {line.file}:{line.line}: {rule}{plain(line.detail)}", "yellow"))
    if len(checked.unreadable) > _LINES:
        console.print(f"  and {len(checked.unreadable) - _LINES:,} more lines that are no rows")
    if checked.no_event:
        return
    if checked.ingested is not None:
        for text in other_names(checked.ingested["drift"]):
            console.print(Text(f"  {text}", "yellow"))
    for name, of in checked.validated.report["tables"].items():
        aside = of["read"] - of["kept"]
        console.print(
            Text(f"\n{name}", "bold"),
            f"{of['read']:,} rows, {of['kept']:,} kept, {aside:,} set aside ({share(aside, of['read'])})",
        )
        _show_rules(name, of, checked, number, plain)


def _counted(ingested: dict[str, Any]) -> str:
    """Where the lines that ingestion read end, in words; it does not end where they do not add up."""
    from flywheel_tasks.traffic.refused import left_out

    ends = [
        f"{ingested['accepted']['total']:,} events",
        f"{ingested['quarantined']['total']:,} refused",
        f"{ingested['duplicates']:,} repeated",
    ]
    ends += [f"{count:,} {whose}" for count, whose in left_out(ingested)]
    return f"Ingestion reads {ingested['read']:,} lines: {', '.join(ends)}."


def _show_rules(name: str, of: dict[str, Any], checked: "Checked", number: Any, plain: Any) -> None:
    rules = Table(show_header=True, header_style="dim", box=None, pad_edge=False)
    for heading in ("", "rule", "observed", "allowed or why"):
        rules.add_column(heading)
    for rule in of["row_rules"]:
        if rule["set_aside"]:
            rules.add_row(
                Text("set aside", "yellow"), rule["rule"], f"{rule['set_aside']:,} rows", Text(rule["why"])
            )
    silent: dict[str, list[str]] = {}
    for rule in (*of["row_rules"], *of["table_rules"]):
        if rule["note"]:
            silent.setdefault(rule["note"], []).append(rule["rule"])
    for rule in of["table_rules"]:
        if rule["note"]:
            continue
        why = rule["allowed"] if rule["status"] == "pass" else f"{rule['allowed']}. {rule['why']}"
        state = Text(_WORDS[rule["status"]], _STYLES[rule["status"]])
        rules.add_row(state, rule["rule"], number(rule["observed"]), Text(why))
    for note, names in silent.items():
        rules.add_row(Text("not judged", "dim"), Text(", ".join(names), "dim"), "", Text(note, "dim"))
    if rules.row_count:
        console.print(rules)
    for row in checked.validated.examples:
        if row["table"] == name:
            place = f"{row['file']}:{row['line']}" if row["file"] else row["event_id"]
            console.print(Text(f"  {plain(place)}: {row['rule']}: {plain(row['detail'])}", "dim"))
