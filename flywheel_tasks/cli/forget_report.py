"""What ``flywheel forget`` says."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flywheel_tasks.cli.whom import Who

console = Console(soft_wrap=True)


def show_table(title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], none: str) -> None:
    """A table, or its title with the word for nothing."""
    if not rows:
        console.print(f"{title}: {none}")
        return
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))  # names and answers of others are no markup
    console.print(table)


def show_logs(found: Mapping[str, Any], what: str) -> None:
    """Lines by file of raw logs, and the files that are broken.

    Args:
        found: :class:`flywheel_tasks.traffic.forget_logs.Found` by location.
        what: the title.
    """
    lines = [
        (f"{location}/{name}", str(count))
        for location, of in found.items()
        for name, count in sorted(of.lines.items())
    ]
    show_table(what, ("file", "lines"), lines, "none")
    broken = {f"{location}/{name}": why for location, of in found.items() for name, why in of.broken.items()}
    show_unreadable("Raw logs that cannot be read to their end", broken)


def show_unreadable(title: str, broken: Mapping[str, str]) -> None:
    """Files that could not be searched to their end, and why; nothing where there are none."""
    if broken:
        show_table(title, ("file", "what is wrong"), sorted(broken.items()), "none")


def show_checkpoints(checkpoints: Mapping[str, Sequence[tuple[str, ...]]], who: Who) -> None:
    """Models that learned from the users; of several users, from how many of them.

    Args:
        checkpoints: generation, model and splits, by user.
        who: the users.
    """
    counted = Counter(model for of in checkpoints.values() for model in of)
    headings: tuple[str, ...] = ("generation", "model", "splits")
    rows = sorted(counted)
    if len(who.given) > 1:
        headings, rows = (*headings, "users"), [(*model, str(counted[model])) for model in rows]
    show_table("Models trained on the data of " + who.them, headings, rows, "none")


def say_whom(who: Who, nowhere: Sequence[str], dry_run: bool) -> None:
    """Who is forgotten, and of whom nothing was found.

    Args:
        who: the users.
        nowhere: hashes of those of whom nothing was found.
        dry_run: whether nothing is changed.
    """
    listed = (
        " (dry run: nothing is changed)" if dry_run else f" {_are(who.given)} on the list of the forgotten"
    )
    console.print(
        (f"User {next(iter(who.given))}" if len(who.given) == 1 else f"{len(who.given)} users") + listed
    )
    if not nowhere:
        return
    whom = "this user" if len(who.given) == 1 else f"{len(nowhere)} of them"
    console.print(
        f"[bold]Nothing of {whom} was found[/bold]: no row, no line of a log, no label, no model. "
        "Is the id right? Upper and lower case and spaces count."
    )
    if len(who.given) > 1:
        for user in nowhere:
            console.print(f"  {who.given[user]!r}", markup=False, emoji=False, highlight=False)


def _are(items: Collection[str]) -> str:
    return "is" if len(items) == 1 else "are"
