"""``flywheel forget``: remove a user from everything that later runs read."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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


def _log_places(settings: Any) -> list[str]:
    """Where raw logs lie: those that are learned from (of a warehouse, what was extracted), those of the gateway."""
    location = settings.logs.location
    if location.startswith("ibis+"):
        location = settings.logs.warehouse.extract_to
    return list(dict.fromkeys([location, settings.serve.logs]))


def _list_logs(root: Path, settings: Any) -> dict[str, list[str]]:
    """The names of the files of raw logs, by location."""
    from flywheel_tasks.traffic.logs import list_logs

    return {
        location: list_logs(location, root)
        for location in _log_places(settings)
        if "://" in location or (root / location).is_dir()
    }


def _find_logs(
    root: Path, settings: Any, key: Any, who: str, names: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Where the user is in raw logs, by location."""
    from flywheel_tasks.traffic import forget_logs

    return {
        location: forget_logs.find(location, root, of, key, who, settings.ingest.rename)
        for location, of in names.items()
    }


def _rewrite_logs(root: Path, settings: Any, key: Any, who: str, found: Mapping[str, Any]) -> None:
    """Take the user's lines out; ends of lines that a gateway left torn, and nobody was told of, go whole."""
    from flywheel_tasks.serving.journal import unsealed
    from flywheel_tasks.traffic import forget_logs

    for path in unsealed(root / settings.serve.logs).torn:
        path.unlink(missing_ok=True)
    for location, of in found.items():
        forget_logs.rewrite(location, root, list(of.lines), key, who, settings.ingest.rename)


def _show_logs(found: Mapping[str, Any], what: str) -> None:
    lines = [
        (f"{location}/{name}", str(count))
        for location, of in found.items()
        for name, count in sorted(of.lines.items())
    ]
    _table(what, ("file", "lines"), lines, "none")
    broken = [
        (f"{location}/{name}", why) for location, of in found.items() for name, why in of.broken.items()
    ]
    if broken:
        _table("Raw logs that cannot be read to their end", ("file", "what is wrong"), broken, "none")


def forget(
    user: Annotated[str, typer.Argument(help="The raw user id, as the logs have it.")],
    hashed: Annotated[bool, typer.Option("--hashed", help="USER is the hash already.")] = False,
    raw_logs: Annotated[bool, typer.Option("--raw-logs", help="Rewrite the raw logs, too.")] = False,
    remotes: Annotated[
        bool, typer.Option("--remotes", help="Look at every object of the DVC remotes, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, change nothing.")
    ] = False,
    root: Annotated[Path, typer.Option("--root", help="Workspace.", file_okay=False)] = Path(),
) -> None:
    """Remove a user from every table that later runs read, for good, and list the models trained on their data."""
    from flywheel_tasks.pipeline.forgetting import check_key, nobody_else
    from flywheel_tasks.settings import load_settings

    root = root.resolve()
    settings = load_settings(root / "params.yaml")
    key, who = _hash(user, hashed, settings.logs.source)
    check_key(root, key)
    with nullcontext() if dry_run else nobody_else(root):
        _forget(root, settings, key, who, None if hashed else user, raw_logs, remotes, dry_run)


def _forget(
    root: Path,
    settings: Any,
    key: Any,
    who: str,
    user: str | None,
    raw_logs: bool,
    remotes: bool,
    dry_run: bool,
) -> None:
    from flywheel_tasks.cli.not_reached import keys_of, not_reached
    from flywheel_tasks.pipeline.trained_on import checkpoints_of
    from flywheel_tasks.privacy import forget as tables
    from flywheel_tasks.privacy.forget_labels import remove_labels
    from flywheel_tasks.privacy.stored_copies import places
    from flywheel_tasks.serving.journal import recover
    from flywheel_tasks.serving.turns import forget_turns

    if raw_logs and not dry_run:
        recover(root / settings.serve.logs)  # what dead gateways left becomes logs that are listed
    names = _list_logs(root, settings)  # before anything is changed, for it may fail
    ids, journal = tables.Ids(who), tables.Journal(root, who)
    # Before the splits change; those that an earlier run found it found before, too.
    checkpoints = sorted({*journal.read(ids), *checkpoints_of(root, who)})
    fresh = True
    if not dry_run:
        journal.complete(ids, checkpoints)
        fresh = _list_as_forgotten(root, settings, key, who)
    # It may take hours, and fail: by now nothing takes the user in again, and no row has gone that would be told of.
    logs = _find_logs(root, settings, key, who, names)
    paths = _tables_of(root, settings)
    for path in paths:
        for row in tables.rows_of(path):
            ids.learn(row)
    copies, left = places(root, remotes)
    for place in copies:
        place.look(ids)  # tables of earlier runs name what this workspace has no row of any more
    if not dry_run:
        journal.complete(ids, checkpoints)
    shown = _clean(root, paths, ids, dry_run)
    given = [
        (name, str(count))
        for name, count in remove_labels(settings.label.location, root, ids, dry_run).items()
    ]
    stored = _drop_copies(copies, ids, dry_run)
    index = root / settings.serve.state / "turns.sqlite"
    turns = 0 if user is None else forget_turns(index, user, dry_run=dry_run)
    if not dry_run:
        tables.drop_kept(root)
        _pin_labels_again(root, settings)
        if raw_logs:  # last, for a file that somebody writes to at this moment stops it
            _rewrite_logs(root, settings, key, who, logs)
    done = "would be removed" if dry_run else "removed"
    console.print(
        f"User {who}" + (" (dry run: nothing is changed)" if dry_run else " is on the list of the forgotten")
    )
    keys = [] if user is None else keys_of(root, settings, user)
    traces = (shown, given, checkpoints, turns, keys, any(int(row[1]) for row in stored))
    if fresh and not any(traces) and not any(of.lines for of in logs.values()):
        console.print(
            "[bold]Nothing of this user was found[/bold]: no row, no line of a log, no label, no model. "
            "Is the id right? Upper and lower case and spaces count."
        )
    _table(f"Rows {done}", ("table", "rows"), shown, "none")
    _table(f"Delivered labels {done}", ("file", "labels"), given, "none")
    _table(f"Copies {done} from DVC", ("place", "tables", "pages", "listings and runs"), stored, "none")
    kept = "Raw logs that hold the user (kept; --raw-logs rewrites them)"
    _show_logs(logs, f"Raw logs: lines {done}" if raw_logs else kept)
    if turns:
        console.print(f"Turns {done} from the gateway's index, which is without texts: {turns}")
    if settings.label.annotator != "simulated":
        tasks = [(task,) for task in sorted(ids.of["task"])]
        _table("Tasks about the user that annotators may hold", ("task_id",), tasks, "none")
    headings = ("generation", "model", "splits")
    _table("Models trained on the user's data", headings, checkpoints, "none")
    rows = not_reached(root, settings, user, keys, left, raw_logs)
    _table("Not reached from here", ("what", "how"), rows, "nothing")
    if not dry_run:
        journal.close()  # now that all of it has been said


def _list_as_forgotten(root: Path, settings: Any, key: Any, who: str) -> bool:
    """Before any row goes, so that no later run takes them in again; False: they were listed before."""
    from flywheel_tasks.pipeline.generation import write_users
    from flywheel_tasks.storage.documents import read_json
    from flywheel_tasks.storage.forgotten import open_forgotten

    added = open_forgotten(settings.registry.location, root).add(key.fingerprint, who)
    if (root / "inputs/users.json").exists():
        write_users(root, read_json(root / "inputs/users.json")["key"])
    return added


def _tables_of(root: Path, settings: Any) -> list[Path]:
    from flywheel_tasks.pipeline import earlier_pairs
    from flywheel_tasks.privacy import forget as tables
    from flywheel_tasks.privacy.forget_labels import local_files

    apart = [root / place for place in _log_places(settings) if "://" not in place]
    apart += local_files(settings.label.location, root)
    return [*tables.tables(root, apart), *sorted((root / earlier_pairs.FOLDER).glob("*.parquet"))]


def _clean(root: Path, paths: Sequence[Path], ids: Any, dry_run: bool) -> list[tuple[str, str]]:
    """Take the user's rows out of tables; give each table that had some, and how many."""
    from flywheel_tasks.privacy import forget as tables

    shown = []
    for path in paths:
        if rows := tables.count(path, ids):
            shown.append((str(path.relative_to(root) if path.is_relative_to(root) else path), str(rows)))
            if not dry_run:
                tables.remove(path, ids)
    return shown


def _drop_copies(copies: Sequence[Any], ids: Any, dry_run: bool) -> list[tuple[str, ...]]:
    """Delete the user's tables from DVC's cache and remotes; give what went, by place."""
    stored = []
    for place in copies:
        owned = place.owned(ids)
        quoting = place.pages if owned else []
        pointing = place.pointing_at([*owned, *quoting])
        stored.append((place.name, *(str(len(found)) for found in (owned, quoting, pointing))))
        if not dry_run:
            # What points at an object goes first: a run that is killed must not leave entries that restore nothing.
            place.drop([*pointing, *quoting, *owned])
    return stored


def _pin_labels_again(root: Path, settings: Any) -> None:
    """The files of delivered labels are others now: pin them as they are."""
    from flywheel_tasks.annotation.delivery import PIN, pin_labels
    from flywheel_tasks.pipeline.generation_ids import current

    if (root / PIN).exists() and (here := current(root)) is not None:
        pin_labels(settings.label, here["generation"], root)
