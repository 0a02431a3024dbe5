"""Removes a user from the tables of a workspace: a row is theirs by their hash, or by an id that only they have.

Tables are rewritten one by one, each whole or not at all. What is needed to know their rows is kept in a journal until
the end, because a table that names the user may be rewritten before one that only names a task of theirs; so a
run that was killed goes on where it stopped.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.pipeline.stage_io import STATE
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.documents import write_json

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
_MODELS = "models"  # in the journal, beside the kinds of ids


@dataclass
class Ids:
    """How rows of a user are known.

    Attributes:
        user: the hash.
        of: ids that are theirs, by kind.
    """

    user: str
    of: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in set(_KIND.values())})

    def learn(self, row: Mapping[str, Any]) -> None:
        """Take the ids of a row that names the user."""
        if row.get("user_id") == self.user:
            for column, kind in _KIND.items():
                if isinstance(row.get(column), str):
                    self.of[kind].add(row[column])

    def owns(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is the user's."""
        named = row.get("user_id")
        if named is not None:
            return bool(named == self.user)
        if any(row.get(column) in self.of[kind] for column, kind in _KIND.items() if row.get(column)):
            return True
        # Lines in quarantine are text that holds the hash, or list it where the text is cut before it.
        return any(isinstance(value, str | list) and self.user in value for value in row.values())


def tables(root: Path, others: Iterable[Path]) -> list[Path]:
    """The tables of a workspace: below ``data/``.

    Args:
        root: the workspace.
        others: folders and files there that are no tables of stages: raw logs, delivered labels.
    """
    apart = [path.resolve() for path in others]
    found = {
        path.resolve() for path in (root / "data").rglob("*") if path.is_file() and path.suffix in _SUFFIXES
    }
    return sorted(path for path in found if not any(path.is_relative_to(other) for other in apart))


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, in bounded memory."""
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    row = orjson.loads(line)
                    if isinstance(row, dict):
                        yield row
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def count(path: Path, ids: Ids) -> int:
    """Rows of the user in a table."""
    return sum(map(ids.owns, rows_of(path)))


def _rewrite_parquet(path: Path, temporary: Path, ids: Ids) -> None:
    with (
        pq.ParquetFile(path) as file,
        pq.ParquetWriter(temporary, file.schema_arrow, compression="zstd") as out,
    ):
        for batch in file.iter_batches(BATCH_ROWS):
            kept = [not ids.owns(row) for row in batch.to_pylist()]
            out.write_batch(batch.filter(pa.array(kept, pa.bool_())))


def remove(path: Path, ids: Ids) -> None:
    """Rewrite a table without the user's rows; the others stay as they are."""
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
    """What is known of a user whose rows are being removed, kept until all are.

    Args:
        root: the workspace.
        user: the hash.
    """

    def __init__(self, root: Path, user: str) -> None:
        self._path = root / STATE / "forget" / f"{user}.json"

    def read(self, ids: Ids) -> list[tuple[str, ...]]:
        """Add what an earlier run learnt, and give the models that it knew to be trained on the user's data."""
        if not self._path.exists():
            return []
        found = json.loads(self._path.read_text(encoding="utf-8"))
        models = found.pop(_MODELS, [])
        for kind, known in found.items():
            ids.of.setdefault(kind, set()).update(known)
        return [tuple(model) for model in models]

    def complete(self, ids: Ids, models: Iterable[Sequence[str]]) -> None:
        """Add what an earlier run learnt, and keep it all.

        Args:
            ids: of the user.
            models: generation, digest and reason of each model that was trained on their data.
        """
        known = sorted({*self.read(ids), *map(tuple, models)})
        write_json({_MODELS: known, **{kind: sorted(ids.of[kind]) for kind in ids.of}}, self._path)

    def close(self) -> None:
        """Everything is removed."""
        self._path.unlink(missing_ok=True)


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
