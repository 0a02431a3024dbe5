"""Ingestion line by line, in memory: what the stage must give on any input, and its peer in the benchmark."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from flywheel_tasks.traffic.events import TABLE_OF, TYPES, Event, EventError, decode_line, parse_line
from flywheel_tasks.traffic.identity import Identity, Mask
from flywheel_tasks.traffic.lines import CorruptGzipError, RawLine, gzip_chunks, plain_chunks, split_lines
from flywheel_tasks.traffic.logs import LogsError, partition_copy, partition_tables
from flywheel_tasks.traffic.schemas import INGEST_QUARANTINE, ORIGINS, TABLES
from flywheel_tasks.traffic.tabular import decoded
from flywheel_tasks.traffic.withheld import kept_of

_BATCH_ROWS = 20_000  # rows held as Python objects before they become Arrow
_UNKNOWN_NAMES = 50  # unknown fields counted by name; the others are counted together


def open_partition(
    location: str, root: Path, partition: Mapping[str, Any], *, max_line_bytes: int
) -> Iterator[RawLine]:
    """The lines of a pinned partition, or its rows as JSON lines; none is given before its digest was checked.

    Raises:
        LogsError: it is gone, is not what was pinned, or is damaged (a cut gzip is no error: its last line carries the
            problem ``truncated_gzip``).
    """
    name, number = partition["path"], 0
    if name.endswith(".parquet"):
        for table in partition_tables(location, root, partition, {}):
            for event in decoded(table, range(table.num_rows)):
                number += 1
                yield RawLine(number, orjson.dumps(event, default=repr))
        return
    with partition_copy(location, root, partition) as file:
        chunks = gzip_chunks(file) if name.endswith(".gz") else plain_chunks(file)
        try:
            for line in split_lines(chunks, max_line_bytes):
                number = line.number
                yield line
        except CorruptGzipError as error:
            raise LogsError(f"{location}: {name}: damaged gzip, beyond line {number}: {error}") from error


class _Rows:
    """Rows of one table, kept as compact Arrow batches."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def table(self, *by: str) -> pa.Table:
        """All rows, sorted."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self._schema).sort_by(
            [(name, "ascending") for name in by]
        )


class Ingestion:
    """Takes lines one by one and keeps the books.

    Args:
        identity: hashes user ids, and knows whom to forget.

    Attributes:
        read: lines taken.
        duplicates: lines that repeat an earlier event.
        forgotten: lines of users to forget.
        accepted: lines that became a row, by event type.
        quarantined: lines that broke a rule, by rule.
        unknown_fields: fields that the format does not have, by ``type.field``.
    """

    def __init__(self, identity: Identity) -> None:
        self.read = 0
        self.duplicates = 0
        self.forgotten = 0
        self.accepted: Counter[str] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.unknown_fields: Counter[str] = Counter()
        self._identity, self._mask = identity, Mask(identity, {})
        self._tables = {name: _Rows(schema) for name, schema in TABLES.items()}
        self._origins = _Rows(ORIGINS)
        self._quarantine = _Rows(INGEST_QUARANTINE)
        self._seen: dict[str, tuple[bytes, str, int]] = {}

    def take(self, file: str, line: RawLine) -> None:
        """Put one line where it belongs."""
        self.read += 1
        if line.problem == "truncated_gzip":
            last = f"line {line.number - 1}" if line.number > 1 else "none"
            self._refuse(
                file, line, EventError("truncated_gzip", f"{file} ends early; last good line: {last}")
            )
            return
        if line.problem == "line_too_long":
            self._refuse(file, line, EventError("line_too_long", "longer than ingest.max_line_bytes"))
            return
        try:
            event = parse_line(line.data)
            if "user_id" in event.row:
                event.row["user_id"] = self._identity.hashed(event.row["user_id"])
                if event.row["user_id"] in self._identity.forgotten:
                    self.forgotten += 1
                    return
            repeated = self._repeats(event, file, line.number)
        except EventError as error:
            self._refuse(file, line, error)
            return
        if repeated:
            self.duplicates += 1
            return
        self._accept(event, file, line.number)

    def _repeats(self, event: Event, file: str, number: int) -> bool:
        content = orjson.dumps([event.type, event.row], option=orjson.OPT_SORT_KEYS)
        digest = blake2b(content, digest_size=16).digest()
        event_id = event.row["event_id"]
        first = self._seen.setdefault(event_id, (digest, file, number))
        if first[0] != digest:
            raise EventError(
                "conflicting_duplicate",
                f"event_id {event_id} has other content in {first[1]} line {first[2]}",
            )
        return first[1:] != (file, number)

    def _accept(self, event: Event, file: str, number: int) -> None:
        self.accepted[event.type] += 1
        self._tables[TABLE_OF[event.type]].add(event.row)
        self._origins.add({"event_id": event.row["event_id"], "file": file, "line": number})
        for field in event.unknown:
            name = f"{event.type}.{field}"
            known = name in self.unknown_fields or len(self.unknown_fields) < _UNKNOWN_NAMES
            self.unknown_fields[name if known else "other"] += 1

    def _refuse(self, file: str, line: RawLine, error: EventError) -> None:
        # Ids are masked before the line is cut, so that no cut leaves the start of one.
        cut = line.problem is not None
        found = self._mask.masked(line.data.decode(errors="backslashreplace"), cut=cut)
        if found.forgotten:
            self.forgotten += 1
            return
        self.quarantined[error.rule] += 1
        event = None
        if not cut:
            with suppress(EventError):
                event = decode_line(line.data)
        raw, detail = kept_of(found, error, event, {})
        told = self._mask.masked(detail)
        self._quarantine.add(
            {
                "file": file,
                "line": line.number,
                "rule": error.rule,
                "detail": told.text,
                "raw": raw,
                "user_ids": sorted({*found.users, *told.users}),
            }
        )

    def tables(self) -> dict[str, pa.Table]:
        """The tables by name, sorted (events by time and id; quarantine and origins by file and line)."""
        return {
            **{name: rows.table("time", "event_id") for name, rows in self._tables.items()},
            "quarantine": self._quarantine.table("file", "line"),
            "origins": self._origins.table("event_id"),
        }

    def metrics(self) -> dict[str, Any]:
        """The counts.

        Raises:
            AssertionError: they do not add up.
        """
        accepted, quarantined = self.accepted.total(), self.quarantined.total()
        stored = sum(rows.count for rows in self._tables.values())
        placed = accepted + quarantined + self.duplicates + self.forgotten
        if placed != self.read or stored != accepted:
            raise AssertionError(
                f"{self.read} lines read, but {accepted} accepted ({stored} stored), "
                f"{quarantined} quarantined, {self.duplicates} duplicates, {self.forgotten} of forgotten users"
            )
        return {
            "read": self.read,
            "accepted": {"total": accepted, **{kind: self.accepted[kind] for kind in TYPES}},
            "quarantined": {"total": quarantined, **dict(sorted(self.quarantined.items()))},
            "duplicates": self.duplicates,
            "forgotten": self.forgotten,
            "unknown_fields": {
                "total": self.unknown_fields.total(),
                **dict(sorted(self.unknown_fields.items())),
            },
        }
