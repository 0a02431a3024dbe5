"""Who was in an A/B test and what they did since, from the raw logs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.traffic.events import Event, EventError, parse_line
from flywheel_tasks.traffic.logs import open_partition, pin_logs

# Signals on replies that an analysis counts, besides messages.
COUNTED = ("thumb_up", "thumb_down", "love", "regenerate")


@dataclass
class Exposed:
    """One user of a test, from their first exposure on (cumulative exposure: once in, always in).

    Attributes:
        user_id: the user.
        first: time of the first exposure.
        arms: every arm they were exposed to, the first one first.
        messages: user turns since.
        replies: assistant turns since.
        signals: count of each of :data:`COUNTED` since.
    """

    user_id: str
    first: datetime
    arms: list[str]
    messages: int = 0
    replies: int = 0
    signals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))


@dataclass
class Reading:
    """What the logs hold of a test.

    Attributes:
        users: the exposed ones, sorted by id.
        partitions: number of log files read.
        logs_digest: over their names and digests.
        unreadable: lines that are no events; they count for nobody.
        repeated: events whose id was seen before.
    """

    users: list[Exposed]
    partitions: int
    logs_digest: str
    unreadable: int
    repeated: int


class _Logs:
    """Events of pinned logs, each id once; reads the files anew at each pass."""

    def __init__(self, location: str, root: Path, max_line_bytes: int) -> None:
        self._root, self._max_line_bytes = root, max_line_bytes
        self.pinned = pin_logs(location, root)
        self.unreadable = self.repeated = 0

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        self.unreadable = self.repeated = 0
        for event in self._all():
            if event.type not in kinds:
                continue
            if event.row["event_id"] in seen:
                self.repeated += 1
                continue
            seen.add(event.row["event_id"])
            yield {"type": event.type, **event.row}

    def _all(self) -> Iterator[Event]:
        for partition in self.pinned["partitions"]:
            lines = open_partition(
                self.pinned["location"], self._root, partition, max_line_bytes=self._max_line_bytes
            )
            for line in lines:
                try:
                    if line.problem is not None:
                        raise EventError(line.problem, "")
                    yield parse_line(line.data)
                except EventError:
                    self.unreadable += 1


def _exposures(events: Iterator[dict[str, Any]], experiment: str) -> dict[str, Exposed]:
    rows = [event for event in events if event["experiment"] == experiment]
    users: dict[str, Exposed] = {}
    for row in sorted(rows, key=lambda row: (row["time"], row["event_id"])):
        user = users.setdefault(row["user_id"], Exposed(row["user_id"], row["time"], []))
        if row["arm"] not in user.arms:
            user.arms.append(row["arm"])
    return users


def read_exposed(location: str, root: Path, experiment: str, *, max_line_bytes: int) -> Reading:
    """Read who was exposed to an experiment and what they did since.

    Memory grows with the exposed users and the ids of the events, not with the texts.

    Args:
        location: of the raw logs.
        root: the workspace.
        experiment: its id.
        max_line_bytes: of the setting ``ingest``.

    Raises:
        LogsError: there are no logs, or they changed while they were read.
    """
    logs = _Logs(location, root, max_line_bytes)
    users = _exposures(logs.events("exposure"), experiment)
    repeated = logs.repeated
    for event in logs.events("message", "signal"):
        user = users.get(event["user_id"])
        if user is None or event["time"] < user.first:
            continue
        if event["type"] == "signal":
            if event["signal"] in user.signals:
                user.signals[event["signal"]] += 1
        elif event["role"] == "user":
            user.messages += 1
        else:
            user.replies += 1
    names = "".join(f"{item['path']} {item['sha256']}\n" for item in logs.pinned["partitions"])
    return Reading(
        users=[users[name] for name in sorted(users)],
        partitions=len(logs.pinned["partitions"]),
        logs_digest=bytes_digest(names.encode()),
        unreadable=logs.unreadable,
        repeated=repeated + logs.repeated,
    )
