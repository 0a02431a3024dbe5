"""Removes users from the tables of a workspace: a row is theirs by their hash, or by an id that only they have.

Tables are rewritten one by one, each whole or not at all. What is needed to know their rows is kept in a journal until
the end, because a table that names a user may be rewritten before one that only names a task of theirs; so a
run that was killed goes on where it stopped.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.pipeline.stage_io import STATE
from flywheel_tasks.storage.atomic import UNFINISHED, atomic_path
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import read_batches
from flywheel_tasks.traffic.identity import HASHED

# Columns whose value belongs to one user, and the kind of id they hold.
_KIND = {
    "conversation_id": "conversation",
    "prompt_id": "prompt",
    "dropped_id": "prompt",
    "kept_id": "prompt",
    "message_id": "message",
    "chosen_id": "message",
    "rejected_id": "message",
    "event_id": "event",
    "task_id": "task",
    "pair_id": "pair",
}
BATCH_ROWS = 5000
_SUFFIXES = (".parquet", ".jsonl")
_MODELS, _FOUND = "models", "found"  # in the journal, beside the kinds of ids


class Ids:
    """How rows of some users are known.

    Args:
        users: their hashes.

    Attributes:
        users: the hashes.
        of: ids that are theirs, by kind, and whose each is.
        found: those of the users of whom a row was seen.
    """

    def __init__(self, *users: str) -> None:
        self.users, self.found = frozenset(users), set[str]()
        self.of: dict[str, dict[str, str]] = {kind: {} for kind in set(_KIND.values())}

    def learn(self, row: Mapping[str, Any]) -> None:
        """Take the ids of a row that names one of the users."""
        user = row.get("user_id")
        if isinstance(user, str) and user in self.users:
            self.found.add(user)
            for column, kind in _KIND.items():
                if isinstance(row.get(column), str):
                    self.of[kind][row[column]] = user

    def owns(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of the users'."""
        owners = self._owners(row)
        self.found |= owners
        return bool(owners)

    def _owners(self, row: Mapping[str, Any]) -> set[str]:
        if (named := row.get("user_id")) is not None:
            return {named} & self.users if isinstance(named, str) else set()
        ids = ((kind, row.get(column)) for column, kind in _KIND.items())
        known = {self.of[kind].get(value) for kind, value in ids if isinstance(value, str)}
        if owners := {user for user in known if user is not None}:
            return owners
        # Lines in quarantine are text that holds the hash, or list it where the text is cut before it.
        hashes: set[str] = set()
        for value in row.values():
            if isinstance(value, list):
                hashes.update(item for item in value if isinstance(item, str))
            elif isinstance(value, str) and "u_" in value:
                hashes.update(HASHED.findall(value))
        return hashes & self.users


class UnreadableTableError(ValueError):
    """A table below ``data/`` is no JSON lines or no Parquet; the message names it, and the line."""


def tables(root: Path, others: Iterable[Path]) -> list[Path]:
    """The tables of a workspace: below ``data/``, without what :func:`drop_unfinished` removes.

    Args:
        root: the workspace.
        others: folders and files there that are no tables of stages: raw logs, delivered labels.
    """
    apart = [path.resolve() for path in others]
    data = root / "data"
    found = {
        path.resolve()
        for path in data.rglob("*")
        if path.is_file()
        and path.suffix in _SUFFIXES
        and not any(UNFINISHED.fullmatch(part) for part in path.relative_to(data).parts)
    }
    return sorted(path for path in found if not any(path.is_relative_to(other) for other in apart))


def drop_unfinished(root: Path, others: Iterable[Path]) -> None:
    """Remove what killed processes were writing below ``data/``: copies of tables, which no listing shows.

    Args:
        root: the workspace; nobody else works in it.
        others: as for :func:`tables`.
    """
    apart = [path.resolve() for path in others]
    for path in sorted((root / "data").rglob(".*")):
        if UNFINISHED.fullmatch(path.name) and not any(
            path.resolve().is_relative_to(other) for other in apart
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, in bounded memory.

    Raises:
        UnreadableTableError: it cannot be read to its end, so nobody knows whom it holds.
    """
    number = 0
    try:
        if path.suffix != ".jsonl":
            for batch in read_batches(path, BATCH_ROWS):
                yield from batch.to_pylist()
            return
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip() and isinstance(row := orjson.loads(line), dict):
                    yield row
    except (orjson.JSONDecodeError, pa.ArrowException) as error:
        where = f"{path}:{number}" if number else str(path)
        raise UnreadableTableError(
            f"{where}: cannot be read, and may hold the users ({error}). Mend the file or move it out of data/, "
            "and run the command again: it goes on from here"
        ) from error


def count(path: Path, ids: Ids) -> int:
    """Rows of the users in a table."""
    return sum(map(ids.owns, rows_of(path)))


def _rewrite_parquet(path: Path, temporary: Path, ids: Ids) -> None:
    with pq.ParquetWriter(temporary, pq.read_schema(path), compression="zstd") as out:
        for batch in read_batches(path, BATCH_ROWS):
            kept = [not ids.owns(row) for row in batch.to_pylist()]
            out.write_batch(batch.filter(pa.array(kept, pa.bool_())))


def remove(path: Path, ids: Ids) -> None:
    """Rewrite a table without the users' rows; the others stay as they are."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            _rewrite_parquet(path, temporary, ids)
            return
        with path.open("rb") as lines, temporary.open("wb") as out:
            for line in lines:
                row = orjson.loads(line) if line.strip() else None
                if not (isinstance(row, dict) and ids.owns(row)):
                    out.write(line)


class Journal:
    """What is known of users whose rows are being removed, a file each, kept until all are.

    Args:
        root: the workspace.
        users: their hashes.
    """

    def __init__(self, root: Path, users: Iterable[str]) -> None:
        self._paths = {user: root / STATE / "forget" / f"{user}.json" for user in users}

    def read(self, ids: Ids) -> dict[str, list[tuple[str, ...]]]:
        """Add what an earlier run learnt, and give the models that it knew to be trained on each user's data.

        A user whose removal was not brought to its end, and only they, have an entry.
        """
        models = {}
        for user, path in self._paths.items():
            if not path.exists():
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            models[user] = [tuple(model) for model in found.pop(_MODELS, [])]
            if found.pop(_FOUND, False):
                ids.found.add(user)
            for kind, known in found.items():
                ids.of.setdefault(kind, {}).update(dict.fromkeys(known, user))
        return models

    def complete(self, ids: Ids, models: Mapping[str, Iterable[Sequence[str]]]) -> None:
        """Add what an earlier run learnt, and keep it all.

        Args:
            ids: of the users.
            models: by user generation, digest and reason of each model that was trained on their data.
        """
        before = self.read(ids)
        theirs: dict[str, dict[str, list[str]]] = {
            user: {kind: [] for kind in ids.of} for user in self._paths
        }
        for kind, owned in ids.of.items():
            for name, user in owned.items():
                theirs[user][kind].append(name)
        for user, path in self._paths.items():
            known = sorted({*before.get(user, ()), *map(tuple, models.get(user, ()))})
            about = {_MODELS: known, _FOUND: user in ids.found}
            write_json(about | {kind: sorted(of) for kind, of in theirs[user].items()}, path)

    def close(self) -> None:
        """Everything is removed."""
        for path in self._paths.values():
            path.unlink(missing_ok=True)


# What is kept beside outputs: half-made and resumable work, parsed logs, what looks at A/B tests read, vectors, a
# failed check's page.
_KEPT = ("tmp", "resume", "contracts", "cache/ingest", "cache/looks", "cache/embeddings")


def drop_kept(root: Path) -> None:
    """Delete what stages keep of earlier runs, and the pages that quote rows of tables; stages make them again."""
    for name in _KEPT:
        shutil.rmtree(root / STATE / name, ignore_errors=True)
    for page in pages(root):
        page.unlink(missing_ok=True)


def pages(root: Path) -> list[Path]:
    """Pages that stages made of tables, and the text that an approver reads."""
    folders = [root / name for name in ("data", "gate", "launch")]
    return sorted(page for folder in folders for kind in ("*.html", "*.md") for page in folder.rglob(kind))
