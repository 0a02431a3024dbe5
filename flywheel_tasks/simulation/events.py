"""Raw log events of simulated traffic, and their date partitions."""

import gzip
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.chat.card import Card
from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.simulated import MARKER

Event = dict[str, Any]


class TrafficError(ValueError):
    """Simulated traffic cannot be written; the message names the folder and the rule."""


def short_id(*parts: object) -> str:
    """A stable id of 12 hexadecimal digits."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:12]


def stamp(time: datetime) -> str:
    """ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def card_events(cards: Sequence[Card], time: datetime, run: str) -> list[Event]:
    """One event a card, at the start of a run."""
    return [
        {
            "event_id": f"sim-e-{short_id(run, card.card_id)}-card",
            "type": "card",
            "time": stamp(time),
            "source": "internal",
            "card_id": card.card_id,
            "name": card.name,
            "traits": list(card.traits),
            "instructions": list(card.instructions),
            "greeting": card.greeting,
        }
        for card in cards
    ]


def _partitions(events: Iterable[Event]) -> dict[str, list[Event]]:
    by_date: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_date[event["time"][:10]].append(event)
    return {day: sorted(by_date[day], key=lambda e: (e["time"], e["event_id"])) for day in sorted(by_date)}


def read_marker(folder: Path) -> dict[str, Any]:
    """The runs that wrote to a folder: ``{"simulated": true, "runs": {name: {start_date, partitions}}}``."""
    if not (folder / MARKER).exists():
        return {"simulated": True, "runs": {}}
    marker: dict[str, Any] = read_json(folder / MARKER)
    return marker


def partition_dates(folder: Path) -> list[str]:
    """Dates that have a partition, sorted."""
    return sorted(path.name.removeprefix("date=") for path in folder.glob("date=*") if path.is_dir())


def write_partitions(events: Iterable[Event], folder: Path, run: str, start_date: str) -> list[str]:
    """Write events as ``date=YYYY-MM-DD/<run>.jsonl.gz``, a file a date; equal events give equal bytes.

    The marker is written first: a run that was killed in between starts on the same date again and replaces
    its files.

    Args:
        events: in any order.
        folder: the logs' folder; other files in it are left alone.
        run: name of the run; part of the file names.
        start_date: of the run, for the marker.

    Returns:
        paths of the files, relative to ``folder``.

    Raises:
        TrafficError: the folder holds other partitions (real logs never get simulated neighbours).
    """
    marker = read_marker(folder)
    if not marker["runs"] and partition_dates(folder):
        raise TrafficError(
            f"{folder}: holds partitions that are not simulated (no {MARKER}); choose another folder"
        )
    parts = _partitions(events)
    paths = {day: f"date={day}/{run}.jsonl.gz" for day in parts}
    marker["runs"][run] = {"start_date": start_date, "partitions": list(paths.values())}
    write_json(marker, folder / MARKER)
    for day, rows in parts.items():
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        with atomic_path(folder / paths[day]) as temporary:
            temporary.write_bytes(gzip.compress(lines, mtime=0))
    return list(paths.values())
