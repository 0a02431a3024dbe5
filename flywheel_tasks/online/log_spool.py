"""Raw log lines to a spool of what an A/B test needs: ids as throw-away keys, kinds and times, no text."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.online.assignment import assign, staff_key
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.experiment_records import Override, Plan
from flywheel_tasks.traffic.events import EventError, parse_line

# The gateway's reason for a fallback while the arm's model is still being loaded.
_LOADING = "loading"
_BATCH = 50_000
_TIME = pa.timestamp("us")
_SPOOL = pa.schema(
    [
        ("event", pa.int64()),
        ("ordinal", pa.int64()),
        ("user", pa.int64()),
        ("time", _TIME),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("arm", pa.string()),
        ("assigned", pa.bool_()),
        ("milliseconds", pa.int64()),
    ]
)


@dataclass
class Counts:
    """What was read.

    Attributes:
        read: events that count.
        unreadable: lines that break a rule of the format.
        staff: exposures of people whose arm was set by hand.
        partitions: of the logs, pinned.
    """

    read: int = 0
    unreadable: int = 0
    staff: int = 0
    partitions: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of the partitions' names and contents."""
        names = "".join(f"{item['path']} {item['sha256']}\n" for item in self.partitions)
        return bytes_digest(names.encode())


class _Keys:
    """64-bit keys of ids, under a key that is thrown away: equal ids meet, and none can be read back.

    Two of n users share a key with a chance of about n^2 / 2^65: 3 in a million for ten million users.
    """

    def __init__(self) -> None:
        self._secret = os.urandom(32)

    def __call__(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big", signed=True)


class LogReader:
    """Raw log lines to rows of the spool.

    Args:
        plan: of the test whose exposures are wanted; None: of no test.
        overrides: staff whose exposures do not count.
        rename: old field names to new ones.
    """

    def __init__(
        self, plan: Plan | None, overrides: tuple[Override, ...], rename: Mapping[str, str] | None = None
    ) -> None:
        self._rename = rename
        self._plan, self._document = plan, plan.model_dump(mode="json") if plan else {}
        self._staff = {item.user for item in overrides}
        self._users, self._events = _Keys(), _Keys()
        self.counts = Counts()

    def rows(self, lines: Iterator[Any]) -> Iterator[dict[str, Any]]:
        """The rows of some lines, each of the spool's columns; :attr:`counts` grows.

        Args:
            lines: :class:`~flywheel_tasks.traffic.lines.RawLine` of the logs.
        """
        for line in lines:
            try:
                if line.problem is not None:
                    raise EventError(line.problem, "")
                event = parse_line(line.data, self._rename)
            except EventError:
                self.counts.unreadable += 1
                continue
            if event.type == "card" or (row := self._row(event.type, event.row)) is None:
                continue
            self.counts.read += 1
            name = event.row["event_id"]
            latency, also = _more(line.data) if row["kind"] == "reply" else (None, None)
            if latency is not None:
                row["milliseconds"] = round(latency)
            yield row | {"ordinal": self.counts.read, "event": self._events(name)}
            if also is not None:
                self.counts.read += 1
                more = {"kind": also, "ordinal": self.counts.read, "milliseconds": None}
                yield row | more | {"event": self._events(f"{also} {name}")}

    def _row(self, kind: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        user, source = row["user_id"], row["source"]
        time = row["time"].replace(tzinfo=None)
        found: dict[str, Any] = {"user": self._users(user), "time": time, "source": source}
        if kind == "message":
            if row["role"] != "assistant":
                return found | {"kind": "message"}
            # No arm wrote a greeting: it is the character's, and nothing is counted by its kind.
            return found | {"kind": "reply" if row["parent_id"] or row["model"] else "greeting"}
        if kind == "signal":
            return found | {"kind": row["signal"]}
        if self._plan is None or row["experiment"] != self._plan.experiment:
            return None
        if self._staff and staff_key(self._plan.salt, user) in self._staff:
            self.counts.staff += 1
            return None
        assigned = assign(self._document, user) == row["arm"]
        return found | {"kind": "exposure", "arm": row["arm"], "assigned": assigned}


def _more(line: bytes) -> tuple[float | None, str | None]:
    """What the gateway logs of a reply beyond the format, where it is what it should be.

    Returns:
        the reply's latency, and what the reply is beside a reply: ``safety_violation`` (not shown, or not to its end)
        or ``fallback`` (the champion's, since the arm's model failed). The champion's latency and violations are not
        the arm's. A model that is still being loaded has not failed: any worker that starts would end a test.
    """
    if not any(name in line for name in (b'"latency_ms"', b'"refused_model"', b'"fallback"')):
        return None, None
    event = orjson.loads(line)
    if isinstance(fallback := event.get("fallback"), str):
        return None, None if fallback == _LOADING else "fallback"
    latency = event.get("latency_ms")
    is_number = isinstance(latency, int | float) and not isinstance(latency, bool) and 0 <= latency < 1e9
    violation = "safety_violation" if isinstance(event.get("refused_model"), str) else None
    return latency if is_number else None, violation


def write_spool(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Write rows as Parquet, a batch at a time."""
    with pq.ParquetWriter(path, _SPOOL) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                writer.write_table(pa.Table.from_pylist(batch, _SPOOL))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, _SPOOL))
