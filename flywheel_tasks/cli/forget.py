"""``flywheel forget``: remove users from everything that later runs read."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from flywheel_tasks.cli.forget_report import (
    console,
    say_whom,
    show_checkpoints,
    show_logs,
    show_table,
    show_unreadable,
)
from flywheel_tasks.cli.forget_tasks import delete_in_label_studio, show_tasks
from flywheel_tasks.cli.whom import Who, whom


def _log_places(settings: Any) -> list[str]:
    """Where raw logs lie: those that are learned from (of a warehouse, what was extracted), those of the gateway."""
    logs = settings.logs
    location = logs.warehouse.extract_to if logs.in_a_warehouse else logs.location
    return list(dict.fromkeys([location, settings.serve.logs]))


def _list_logs(root: Path, settings: Any) -> dict[str, list[str]]:
    """The names of the files of raw logs, by location."""
    from flywheel_tasks.traffic.logs import list_logs

    return {
        location: list_logs(location, root)
        for location in _log_places(settings)
        if "://" in location or (root / location).is_dir()
    }


def _find_logs(root: Path, settings: Any, who: Who, names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Where the users are in raw logs, by location."""
    from flywheel_tasks.traffic import forget_logs

    return {
        location: forget_logs.find(location, root, of, who.key, who.given, settings.ingest.rename)
        for location, of in names.items()
    }


def _rewrite_logs(root: Path, settings: Any, who: Who, found: Mapping[str, Any]) -> None:
    """Take the users' lines out; ends of lines that a gateway left torn, and nobody was told of, go whole."""
    from flywheel_tasks.serving.journal import unsealed
    from flywheel_tasks.traffic import forget_logs
    from flywheel_tasks.traffic.log_store import open_logs

    for path in unsealed(root / settings.serve.logs).torn:
        path.unlink(missing_ok=True)
    for location, of in found.items():
        open_logs(location, root).sweep()
        forget_logs.rewrite(location, root, list(of.lines), who.key, who.given, settings.ingest.rename)


def forget(
    users: Annotated[list[str] | None, typer.Argument(help="Raw user ids, as the logs have them.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="A file with more ids, one a line; -: standard input.", dir_okay=False),
    ] = None,
    hashed: Annotated[bool, typer.Option("--hashed", help="The ids are the hashes already.")] = False,
    raw_logs: Annotated[bool, typer.Option("--raw-logs", help="Rewrite the raw logs, too.")] = False,
    remotes: Annotated[
        bool, typer.Option("--remotes", help="Look at every object of the DVC remotes, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, change nothing.")
    ] = False,
    root: Annotated[Path, typer.Option("--root", help="Workspace.", file_okay=False)] = Path(),
) -> None:
    """Remove users from every table that later runs read, for good, and list the models trained on their data.

    Tables, logs and copies are searched once, however many users there are.
    """
    from flywheel_tasks.pipeline.forgetting import check_key, nobody_else
    from flywheel_tasks.settings import load_settings

    root = root.resolve()
    settings = load_settings(root / "params.yaml")
    who = whom(users or [], file, hashed=hashed, source=settings.logs.source)
    check_key(root, who.key)
    with nullcontext() if dry_run else nobody_else(root):
        _forget(root, settings, who, raw_logs, remotes, dry_run)


def _forget(root: Path, settings: Any, who: Who, raw_logs: bool, remotes: bool, dry_run: bool) -> None:
    from flywheel_tasks.cli.not_reached import keys_of, not_reached
    from flywheel_tasks.privacy import forget as tables
    from flywheel_tasks.privacy.forget_labels import remove_labels
    from flywheel_tasks.privacy.stored_copies import places
    from flywheel_tasks.serving.journal import recover

    if raw_logs and not dry_run:
        recover(root / settings.serve.logs)  # what dead gateways left becomes logs that are listed
    names = _list_logs(root, settings)  # before anything is changed, for it may fail
    ids, journal = tables.Ids(*who.given), tables.Journal(root, who.given)
    begun = journal.read(ids)
    checkpoints = _checkpoints(root, begun, who)
    fresh = set(who.given)
    if not dry_run:
        journal.complete(ids, checkpoints)
        fresh = _list_as_forgotten(root, settings, who) | begun.keys()
        tables.drop_unfinished(root, _no_tables(root, settings))
    # It may take hours, and fail: by now nothing takes the users in again, and no row has gone that would be told of.
    logs = _find_logs(root, settings, who, names)
    ids.found.update(*(of.users for of in logs.values()))
    paths = _tables_of(root, settings)
    for path in paths:
        for row in tables.rows_of(path):
            ids.learn(row)
    copies, left = places(root, remotes)
    for place in copies:
        place.look(ids)  # tables of earlier runs name what this workspace has no row of any more
    if not dry_run:
        journal.complete(ids, checkpoints)
    held = delete_in_label_studio(settings.label, sorted(ids.of["task"]), dry_run)
    shown = _clean(root, paths, ids, dry_run)
    delivered = remove_labels(settings.label.location, root, ids, dry_run)
    stored = _drop_copies(copies, ids, dry_run)
    turns = _forget_turns(root, settings, who, dry_run)
    if not dry_run:
        tables.drop_kept(root)
        _pin_labels_again(root, settings)
        if raw_logs:  # last, for a file that somebody writes to at this moment stops it
            _rewrite_logs(root, settings, who, logs)
            tables.drop_kept(root)  # a look at a running test may have read the logs until now
    done = "would be removed" if dry_run else "removed"
    keys = keys_of(root, settings, who.raw)
    seen = ids.found.union(turns)
    seen |= {who.key.hashed(user) for user in keys.values()} | {
        user for user, of in checkpoints.items() if of
    }
    say_whom(who, [user for user in who.given if user in fresh - seen], dry_run)
    show_table(f"Rows {done}", ("table", "rows"), shown, "none")
    given = [(name, str(count)) for name, count in delivered.labels.items()]
    show_table(f"Delivered labels {done}", ("file", "labels"), given, "none")
    show_unreadable("Delivered labels that cannot be read, and may hold them", delivered.broken)
    show_table(f"Copies {done} from DVC", ("place", "tables", "pages", "listings and runs"), stored, "none")
    kept = f"Raw logs that hold {who.them} (kept; --raw-logs rewrites them)"
    show_logs(logs, f"Raw logs: lines {done}" if raw_logs else kept)
    if turns:
        console.print(f"Turns {done} from the gateway's index, which is without texts: {sum(turns.values())}")
    show_tasks(held, settings.label, who, dry_run)
    show_checkpoints(checkpoints, who)
    trained = any(checkpoints.values())
    rows = not_reached(root, settings, who.hashed, list(keys), left, raw_logs, held.problem, trained)
    show_table("Not reached from here", ("what", "how"), rows, "nothing")
    if not dry_run:
        journal.close()  # now that all of it has been said


def _checkpoints(
    root: Path, before: Mapping[str, Sequence[tuple[str, ...]]], who: Who
) -> dict[str, list[tuple[str, ...]]]:
    """Models by user, before the splits change; those that an earlier run found it found before, too."""
    from flywheel_tasks.pipeline.trained_on import checkpoints_of

    now = checkpoints_of(root, who.given)
    return {user: sorted({*before.get(user, ()), *map(tuple, now[user])}) for user in who.given}


def _forget_turns(root: Path, settings: Any, who: Who, dry_run: bool) -> dict[str, int]:
    """Drop the users' turns from the gateway's index; give how many there were, by hash."""
    from flywheel_tasks.serving.turns import forget_turns

    if who.hashed:
        return {}
    index = root / settings.serve.state / "turns.sqlite"
    counts = forget_turns(index, who.raw, dry_run=dry_run)
    return {user: counts[raw] for user, raw in who.given.items() if counts[raw]}


def _list_as_forgotten(root: Path, settings: Any, who: Who) -> set[str]:
    """Before any row goes, so that no later run takes them in again; give those who were not listed before."""
    from flywheel_tasks.pipeline.generation import write_users
    from flywheel_tasks.storage.documents import read_json
    from flywheel_tasks.storage.forgotten import open_forgotten

    listed = open_forgotten(settings.registry.location, root)
    added = {user for user in who.given if listed.add(who.key.fingerprint, user)}
    if (root / "inputs/users.json").exists():
        write_users(root, read_json(root / "inputs/users.json")["key"])
    return added


def _no_tables(root: Path, settings: Any) -> list[Path]:
    """What lies below ``data/``, perhaps, and is no table of a stage: raw logs, delivered labels."""
    from flywheel_tasks.privacy.forget_labels import local_files

    logs = [root / place for place in _log_places(settings) if "://" not in place]
    return [*logs, *local_files(settings.label.location, root)]


def _tables_of(root: Path, settings: Any) -> list[Path]:
    from flywheel_tasks.pipeline import earlier_pairs
    from flywheel_tasks.privacy import forget as tables

    return [
        *tables.tables(root, _no_tables(root, settings)),
        *sorted((root / earlier_pairs.FOLDER).glob("*.parquet")),
    ]


def _clean(root: Path, paths: Sequence[Path], ids: Any, dry_run: bool) -> list[tuple[str, str]]:
    """Take the users' rows out of tables; give each table that had some, and how many."""
    from flywheel_tasks.privacy import forget as tables

    shown = []
    for path in paths:
        if rows := tables.count(path, ids):
            shown.append((str(path.relative_to(root) if path.is_relative_to(root) else path), str(rows)))
            if not dry_run:
                tables.remove(path, ids)
    return shown


def _drop_copies(copies: Sequence[Any], ids: Any, dry_run: bool) -> list[tuple[str, ...]]:
    """Delete the users' tables from DVC's cache and remotes; give what went, by place."""
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
