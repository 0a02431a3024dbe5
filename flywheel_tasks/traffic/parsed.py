"""Blocks of a partition to rows: users hashed, forgotten ones left out, broken lines named.

Good rows come as columns (:mod:`flywheel_tasks.traffic.columns`), every other line through the exact parser.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.traffic.columns import LineReader, Taken, take_rows
from flywheel_tasks.traffic.drift import Profile
from flywheel_tasks.traffic.events import TABLE_OF, EventError, decode_line, parse_event
from flywheel_tasks.traffic.identity import Identity, Mask
from flywheel_tasks.traffic.lines import Block
from flywheel_tasks.traffic.schemas import TABLES
from flywheel_tasks.traffic.tabular import decoded
from flywheel_tasks.traffic.withheld import kept_of

LINE = pa.field("line", pa.int64())


@dataclass
class Parsed:
    """What some lines became.

    Attributes:
        read: lines.
        forgotten: lines of users to forget.
        not_sampled: lines of users who are not of the sample.
        tables: good rows by event type, with the column ``line``.
        refused: quarantined lines: ``line``, ``rule``, ``detail``, ``raw``, ``user_ids``.
        renamed: lines with a field under its old name, by that name.
        profile: fields seen.
    """

    read: int = 0
    forgotten: int = 0
    not_sampled: int = 0
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    renamed: Counter[str] = field(default_factory=Counter)
    profile: Profile = field(default_factory=Profile)


class Parser:
    """Parses blocks; holds no state between them but known hashes.

    Args:
        identity: hashes users, and knows whom to forget.
        max_line_bytes: longer lines are refused.
        rename: old field names to new ones.
    """

    def __init__(self, identity: Identity, max_line_bytes: int, rename: Mapping[str, str]) -> None:
        self._identity, self._max_bytes, self._rename = identity, max_line_bytes, dict(rename)
        self._mask = Mask(identity, self._rename)
        self._reader = LineReader(max_line_bytes, self._rename)

    def lines(self, block: Block) -> Parsed:
        """Parse a block of lines."""
        if block.problem is not None:
            last = f"line {block.number - 1}" if block.number > 1 else "none"
            parsed = Parsed(read=1)
            error = EventError(block.problem, f"ends early; last good line: {last}")
            self._refuse(parsed, block.number, block.data, error, cut=True)
            return parsed
        taken = self._reader.read(block.data, block.number)
        parsed = self._begun(taken)
        parsed.read = block.data.count(b"\n")
        if taken.rest:
            lines = block.data.split(b"\n")
            self._exact(parsed, [(block.number + k, lines[k]) for k in taken.rest])
        return parsed

    def rows(self, table: pa.Table, first: int) -> Parsed:
        """Parse rows of a columnar table.

        Args:
            table: a column a field, as :func:`flywheel_tasks.traffic.columns.take_rows` wants them.
            first: number of its first row.
        """
        position = np.arange(table.num_rows)
        taken = take_rows(table, position + first, position, self._rename)
        parsed = self._begun(taken)
        parsed.read = table.num_rows
        rest = decoded(table, taken.rest)
        self._exact_events(parsed, [(first + k, event) for k, event in zip(taken.rest, rest, strict=True)])
        return parsed

    def _begun(self, taken: Taken) -> Parsed:
        parsed = Parsed(renamed=taken.renamed, profile=taken.profile)
        for kind, tables in taken.tables.items():
            parsed.tables[kind] = [self._hashed(parsed, table) for table in tables]
        return parsed

    def _hashed(self, parsed: Parsed, table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("user_id")
        users = self._hashes(table.column(at))
        table = table.set_column(at, table.schema.field(at), users)
        if self._identity.forgotten:
            keep = pc.invert(pc.is_in(users, value_set=pa.array(sorted(self._identity.forgotten))))
            parsed.forgotten += table.num_rows - (pc.sum(keep).as_py() or 0)
            table, users = table.filter(keep), users.filter(keep)
        if self._identity.sample < 1:
            drawn = [user for user in pc.unique(users).to_pylist() if self._identity.sampled(user)]
            keep = pc.is_in(users, value_set=pa.array(drawn, pa.string()))
            parsed.not_sampled += table.num_rows - (pc.sum(keep).as_py() or 0)
            table = table.filter(keep)
        return table

    def _hashes(self, users: pa.ChunkedArray) -> pa.Array:
        encoded = users.combine_chunks().dictionary_encode()
        known = [self._identity.hashed(user) for user in encoded.dictionary.to_pylist()]
        return pa.array(known, pa.string()).take(encoded.indices)

    def _exact(self, parsed: Parsed, lines: Sequence[tuple[int, bytes]]) -> None:
        events = []
        for number, line in lines:
            if len(line) > self._max_bytes:
                error = EventError("line_too_long", "longer than ingest.max_line_bytes")
                self._refuse(parsed, number, line[: self._max_bytes], error, cut=True)
                continue
            try:
                events.append((number, decode_line(line), line))
            except EventError as error:
                self._refuse(parsed, number, line, error)
        self._exact_events(parsed, events)

    def _exact_events(self, parsed: Parsed, events: Sequence[tuple[Any, ...]]) -> None:
        """Parse decoded events: number, event, and the line if it is not to be made of the event."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for number, given, *line in events:
            try:
                event = parse_event(given, self._rename)
            except EventError as error:
                raw = line[0] if line else _written(given)
                if self._refuse(parsed, number, raw, error, given) and error.rule == "missing_field":
                    parsed.profile.add_refused(given)
                continue
            if "user_id" in event.row:
                event.row["user_id"] = self._identity.hashed(event.row["user_id"])
                if event.row["user_id"] in self._identity.forgotten:
                    parsed.forgotten += 1
                    continue
            parsed.renamed.update(event.renamed)
            parsed.profile.add_event(
                event.type, event.row, {name: given[name] for name in event.unknown if name in given}
            )
            # Like the columns' fast path, the profile counts everybody: what drifts is told of all.
            if "user_id" in event.row and not self._identity.sampled(event.row["user_id"]):
                parsed.not_sampled += 1
                continue
            rows.setdefault(event.type, []).append({**event.row, "line": number})
        for kind, found in rows.items():
            schema = TABLES[TABLE_OF[kind]].append(LINE)
            parsed.tables.setdefault(kind, []).append(pa.Table.from_pylist(found, schema=schema))

    def _refuse(
        self,
        parsed: Parsed,
        number: int,
        line: bytes,
        error: EventError,
        event: Mapping[str, Any] | None = None,
        *,
        cut: bool = False,
    ) -> bool:
        """Put a line (or, ``cut``, the start of one) into quarantine; False if it is a forgotten user's."""
        # Ids are masked before the line is cut, so that no cut leaves the start of one.
        found = self._mask.masked(line.decode(errors="backslashreplace"), cut=cut)
        if found.forgotten:
            parsed.forgotten += 1
            return False
        if not self._in_sample(found.users, line):
            parsed.not_sampled += 1
            return True
        raw, detail = kept_of(found, error, event, self._rename)
        told = self._mask.masked(detail)  # it may quote a part of the line
        users = sorted({*found.users, *told.users})
        parsed.refused.append(
            {"line": number, "rule": error.rule, "detail": told.text, "raw": raw, "user_ids": users}
        )
        return True

    def _in_sample(self, users: Sequence[str], line: bytes) -> bool:
        """Of a line that names nobody, the line itself is drawn: the share of broken lines must stay what it is."""
        if users:
            return any(map(self._identity.sampled, users))
        return self._identity.sampled(f"u_{blake2b(line, digest_size=4).hexdigest()}")


def _written(event: Mapping[str, Any]) -> bytes:
    return orjson.dumps(event, default=repr)
