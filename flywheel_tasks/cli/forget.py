"""``flywheel forget``: remove a user from everything that later runs read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True)


def _hash(user: str, hashed: bool, source: str) -> tuple[Any, str]:
    from flywheel_tasks.traffic.identity import HASHED, IdentityError, user_key

    key = user_key(source)  # type: ignore[arg-type]
    if hashed and not HASHED.fullmatch(user):
        raise IdentityError(
            f"{user!r} is not a hash (u_ and 32 hexadecimal digits): leave --hashed out for a raw id"
        )
    return key, user if hashed else key.hashed(user)


def _table(title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], none: str) -> None:
    if not rows:
        console.print(f"{title}: {none}")
        return
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def forget(
    user: Annotated[str, typer.Argument(help="The raw user id, as the logs have it.")],
    hashed: Annotated[bool, typer.Option("--hashed", help="USER is the hash already.")] = False,
    raw_logs: Annotated[bool, typer.Option("--raw-logs", help="Rewrite the raw logs, too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, change nothing.")
    ] = False,
    root: Annotated[Path, typer.Option("--root", help="Workspace.", file_okay=False)] = Path(),
) -> None:
    """Remove a user from every table that later runs read, for good, and list the models trained on their data."""
    from flywheel_tasks.pipeline.generation import write_users
    from flywheel_tasks.pipeline.trained_on import checkpoints_of
    from flywheel_tasks.privacy import forget as tables
    from flywheel_tasks.settings import load_settings
    from flywheel_tasks.storage.documents import read_json
    from flywheel_tasks.storage.forgotten import open_forgotten
    from flywheel_tasks.traffic import forget_logs

    root = root.resolve()
    settings = load_settings(root / "params.yaml")
    key, who = _hash(user, hashed, settings.logs.source)
    done = "would be removed" if dry_run else "removed"
    checkpoints = checkpoints_of(root, who)  # before the splits change
    if not dry_run:
        # First, so that whatever happens next, no later run takes them in again.
        open_forgotten(settings.registry.location, root).add(key.fingerprint, who)
        if (root / "inputs/users.json").exists():
            write_users(root, read_json(root / "inputs/users.json")["key"])
    paths = tables.tables(
        root, root / settings.logs.location, tables.delivered(root, settings.label.location)
    )
    ids, journal = tables.Ids(who), tables.Journal(root, who)
    for path in paths:
        for row in tables.rows_of(path):
            ids.learn(row)
    if not dry_run:
        journal.complete(ids)
    shown = []
    for path in paths:
        if rows := tables.count(path, ids):
            shown.append((str(path.relative_to(root) if path.is_relative_to(root) else path), str(rows)))
            if not dry_run:
                tables.remove(path, ids)
    objects = tables.cached(root / ".dvc/cache", ids)
    if not dry_run:
        tables.drop(objects)
        tables.drop_parsed(root)
    logs = forget_logs.find(settings.logs.location, root, key, who)
    if raw_logs and not dry_run:
        forget_logs.rewrite(settings.logs.location, root, list(logs), key, who)
    if not dry_run:
        journal.close()
    console.print(
        f"User {who}" + (" (dry run: nothing is changed)" if dry_run else " is on the list of the forgotten")
    )
    _table(f"Rows {done}", ("table", "rows"), shown, "none")
    console.print(f"Tables of earlier runs {done} from .dvc/cache: {len(objects)}")
    what = (
        f"Raw logs: lines {done}"
        if raw_logs
        else "Raw logs that hold the user (kept; --raw-logs rewrites them)"
    )
    _table(what, ("file", "lines"), [(name, str(lines)) for name, lines in sorted(logs.items())], "none")
    headings = ("generation", "model", "splits")
    _table("Models trained on the user's data", headings, checkpoints, "none")
    console.print(
        "Not reached from here: DVC remotes (dvc gc --cloud), labels on S3 or in Label Studio, backups,"
    )
    console.print("and other checkouts: run this there, too.")
