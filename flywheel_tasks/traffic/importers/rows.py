"""What importers share: rows taken and skipped, JSON Lines in, log partitions out."""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.documents import json_flaw, write_jsonl
from flywheel_tasks.traffic.lines import CorruptGzipError, gzip_chunks, plain_chunks, split_lines

_MAX_LINE_BYTES = 10_000_000


class ImportFormatError(ValueError):
    """A file is not in the format at all; the message names the file and what is wrong."""


class RowError(ValueError):
    """A row breaks a rule (``args``: rule, detail)."""


@dataclass(frozen=True)
class SkippedRow:
    """A row that was not taken.

    Attributes:
        file: the file.
        line: the line on which the row begins, from 1.
        rule: the rule it breaks.
        detail: what was found.
    """

    file: str
    line: int
    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.detail}"


@dataclass(frozen=True)
class Imported:
    """What a file held.

    Attributes:
        rows: pairs or log events.
        skipped: rows that were not taken.
        mark: of :func:`file_mark`; empty where no row needs it.
    """

    rows: list[dict[str, Any]]
    skipped: list[SkippedRow]
    mark: str = ""


def short_hash(*parts: str) -> str:
    """Sixteen hexadecimal digits that name some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def file_mark(path: Path) -> str:
    """Twelve hexadecimal digits that name a file by its content.

    They stand in ids that count a file's rows: so two files can be imported beside each other, and the same one again
    gives the same events.
    """
    return file_digest(path).removeprefix("sha256:")[:12]


def read_objects(path: Path, skipped: list[SkippedRow]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON Lines, gzipped or not.

    Args:
        path: the file.
        skipped: gets the lines that hold no object.

    Yields:
        line number and object of every other line.

    Raises:
        ImportFormatError: the gzip is damaged.
    """
    with path.open("rb") as file:
        chunks = gzip_chunks(file) if path.suffix == ".gz" else plain_chunks(file)
        try:
            for line in split_lines(chunks, _MAX_LINE_BYTES):
                if line.problem is not None:
                    detail = "longer than 10 MB" if line.problem == "line_too_long" else "the file ends early"
                    skipped.append(SkippedRow(str(path), line.number, line.problem, detail))
                    continue
                try:
                    row = orjson.loads(line.data.removeprefix(BOM_UTF8) if line.number == 1 else line.data)
                except orjson.JSONDecodeError as error:
                    skipped.append(SkippedRow(str(path), line.number, "not_json", json_flaw(error)))
                    continue
                if isinstance(row, dict):
                    yield line.number, row
                else:
                    skipped.append(SkippedRow(str(path), line.number, "not_object", "not a JSON object"))
        except CorruptGzipError as error:
            raise ImportFormatError(f"{path}: damaged gzip: {error}") from error


def text_field(row: dict[str, Any], key: str) -> str:
    """A string of a row.

    Raises:
        RowError: it is absent or no string.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise RowError("missing_field", f"{key} is not a string")
    return value


def stamp(moment: datetime) -> str:
    """A time in UTC as logs write it."""
    return moment.isoformat().replace("+00:00", "Z")


def card_event(
    card_id: str,
    name: str,
    traits: list[str],
    instructions: list[str],
    moment: datetime,
    source: str,
    mark: str,
) -> dict[str, Any]:
    """A card as a log event of a file (``mark``): another file may have the same card at another time."""
    return {
        "event_id": f"card-{mark}-{card_id}",
        "type": "card",
        "time": stamp(moment),
        "source": source,
        "card_id": card_id,
        "name": name,
        "traits": traits,
        "instructions": instructions,
    }


def write_partitions(events: Iterable[dict[str, Any]], folder: Path, name: str) -> list[Path]:
    """Write events as log partitions ``date=YYYY-MM-DD/<name>.jsonl``.

    Args:
        events: log events.
        folder: the logs' location.
        name: of the files, without suffix; files of that name are replaced.

    Returns:
        the files, sorted.
    """
    by_day: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_day.setdefault(event["time"][:10], []).append(event)
    paths = []
    for day, rows in sorted(by_day.items()):
        path = folder / f"date={day}" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows, path)
        paths.append(path)
    return paths
