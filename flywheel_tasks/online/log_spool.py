"""Raw log lines to a spool of what an A/B test needs: ids as keys, kinds and times, no text.

Good rows come as columns (:mod:`flywheel_tasks.traffic.columns`), every other line through the exact parser.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import compress
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.online.assignment import assign, staff_key
from flywheel_tasks.settings import Ingest
from flywheel_tasks.storage.experiment_records import Override, Plan
from flywheel_tasks.traffic.columns import FAST, LineReader, Taken, take_rows
from flywheel_tasks.traffic.events import EventError, decode_line, parse_event
from flywheel_tasks.traffic.lines import Block
from flywheel_tasks.traffic.partition import run_schema
from flywheel_tasks.traffic.tabular import decoded

# The gateway's reason for a fallback while the arm's model is still being loaded.
_LOADING = "loading"
# What the gateway logs of a reply beyond the format.
_BEYOND = {"latency_ms": pa.float64(), "refused_model": pa.string(), "fallback": pa.string()}
_LONGEST = 1e9  # milliseconds
_TIME = pa.timestamp("us")
SPOOL = pa.schema(
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
_MESSAGES = pa.schema([*run_schema("message"), ("milliseconds", pa.int64()), ("beside", pa.string())])


class LogReader:
    """Raw log lines to rows of the spool.

    Ids become 64-bit keys under a secret: equal ids meet, and none can be read back without it. Two of n users share a
    key with a chance of about n^2 / 2^65: 3 in a million for ten million users.

    Args:
        plan: of the test whose exposures are wanted; None: of no test.
        overrides: staff whose exposures do not count.
        settings: of ingestion: what a line may be.
        secret: of the keys, 32 bytes; what is to be put together must be of one.

    Its methods may be called from several threads.
    """

    def __init__(
        self, plan: Plan | None, overrides: tuple[Override, ...], settings: Ingest, secret: bytes
    ) -> None:
        self._plan, self._document = plan, plan.model_dump(mode="json") if plan else {}
        self._staff = {item.user for item in overrides}
        self._max_bytes, self._rename, self._secret = settings.max_line_bytes, settings.rename, secret
        self._columns = LineReader(settings.max_line_bytes, settings.rename, _BEYOND)
        self._counts, self._lock = dict.fromkeys(("rows", "unreadable", "staff"), 0), Lock()

    def counts(self) -> dict[str, int]:
        """What was read: ``rows`` of the spool, ``unreadable`` lines that break a rule, exposures of ``staff``."""
        with self._lock:
            return dict(self._counts)

    def _count(self, name: str, number: int) -> None:
        with self._lock:
            self._counts[name] += number

    def lines(self, block: Block) -> pa.Table:
        """The rows of a block of lines, of the columns of :data:`SPOOL`, in no order."""
        if block.problem is not None:
            self._count("unreadable", 1)
            return SPOOL.empty_table()
        taken = self._columns.read(block.data, block.number)
        lines = block.data.split(b"\n") if taken.rest else []
        return self._rows(taken, [(block.number + k, self._decoded(lines[k])) for k in taken.rest])

    def rows(self, table: pa.Table, first: int) -> pa.Table:
        """The rows of a columnar table, as of :meth:`lines`.

        Args:
            table: a column a field, as :func:`flywheel_tasks.traffic.tabular.read_tables` gives them.
            first: number of its first row.
        """
        position = np.arange(table.num_rows)
        taken = take_rows(_typed(table), position + first, position, self._rename, _BEYOND)
        rest = zip(taken.rest, decoded(table, taken.rest), strict=True)
        return self._rows(taken, [(first + k, event) for k, event in rest])

    def _decoded(self, line: bytes) -> dict[str, Any] | None:
        try:
            return decode_line(line) if len(line) <= self._max_bytes else None
        except EventError:
            return None

    def _rows(self, taken: Taken, rest: Iterable[tuple[int, dict[str, Any] | None]]) -> pa.Table:
        exact: dict[str, list[dict[str, Any]]] = {}
        for number, given in rest:
            try:
                event = parse_event(given, self._rename) if given is not None else None
            except EventError:
                event = None
            if event is None or given is None:
                self._count("unreadable", 1)
                continue
            row = {**event.row, "line": number}
            if event.type == "message":
                row["milliseconds"], row["beside"] = _more(given)
            exact.setdefault(event.type, []).append(row)
        made = []
        for kind in FAST:
            plain = run_schema(kind)
            schema = _MESSAGES if kind == "message" else plain
            tables = [pa.Table.from_pylist(exact.get(kind, []), schema)]
            for table in taken.tables.get(kind, []):
                columns = _more_of_columns(table) if kind == "message" else {}
                tables.append(pa.table({name: table[name] for name in plain.names} | columns, schema))
            made += self._spooled(kind, pa.concat_tables(tables).combine_chunks())
        found = pa.concat_tables([SPOOL.empty_table(), *made])
        self._count("rows", found.num_rows)
        return found

    def _spooled(self, kind: str, table: pa.Table) -> list[pa.Table]:
        if kind == "message":
            return self._messages(table)
        if kind == "signal":
            return [self._made(table, kind=table["signal"])]
        return [self._exposures(table)]

    def _key(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big", signed=True)

    def _made(self, table: pa.Table, *, place: int = 0, **columns: Any) -> pa.Table:
        """Rows of the spool; of those of one line, the ``place`` is which comes first."""
        users = table["user_id"].combine_chunks().dictionary_encode()
        known = pa.array([self._key(f"user {name}") for name in users.dictionary.to_pylist()], pa.int64())
        events = [self._key(f"event {name}") for name in table["event_id"].to_pylist()]
        found = {
            "event": pa.array(events, pa.int64()),
            "ordinal": pa.array(table["line"].to_numpy() * 2 + place, pa.int64()),
            "user": known.take(users.indices),
            "time": table["time"].cast(_TIME),
            "source": table["source"],
            **columns,
        }
        nothing = pa.nulls(table.num_rows)
        return pa.table([found.get(name, nothing) for name in SPOOL.names], names=SPOOL.names).cast(SPOOL)

    def _messages(self, table: pa.Table) -> list[pa.Table]:
        # No arm wrote a greeting: it is the character's, and nothing is counted by its kind.
        answers = pc.or_(_given(table["parent_id"]), _given(table["model"]))
        of_model = pc.if_else(answers, "reply", "greeting")
        kinds = pc.if_else(pc.equal(table["role"], "assistant"), of_model, "message")
        is_reply = pc.equal(kinds, "reply")
        took = pc.if_else(is_reply, table["milliseconds"], None)
        beside = table.filter(pc.and_(is_reply, table["beside"].is_valid()))
        # What a reply is beside a reply is an event of its own.
        names = pc.binary_join_element_wise(beside["beside"], beside["event_id"], " ")
        more = beside.set_column(beside.schema.get_field_index("event_id"), "event_id", names)
        return [
            self._made(table, kind=kinds, milliseconds=took),
            self._made(more, place=1, kind=beside["beside"]),
        ]

    def _exposures(self, table: pa.Table) -> pa.Table:
        wanted = self._plan.experiment if self._plan else None
        table = table.filter(pc.equal(table["experiment"], pa.scalar(wanted, pa.string())))
        users = table["user_id"].to_pylist()
        if self._staff and self._plan:
            of_staff = {user: staff_key(self._plan.salt, user) in self._staff for user in set(users)}
            keep = [not of_staff[user] for user in users]
            self._count("staff", len(keep) - sum(keep))
            table, users = table.filter(pa.array(keep, pa.bool_())), list(compress(users, keep))
        drawn = {user: assign(self._document, user) for user in set(users)}
        arms = table["arm"].to_pylist()
        assigned = [drawn[user] == arm for user, arm in zip(users, arms, strict=True)]
        kind = pa.array(["exposure"] * table.num_rows, pa.string())
        return self._made(table, kind=kind, arm=table["arm"], assigned=pa.array(assigned, pa.bool_()))


def _given(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.greater(pc.binary_length(column).fill_null(0), 0)


def _typed(table: pa.Table) -> pa.Table:
    """A columnar partition whose columns beyond the format have their types; of other types they say nothing."""
    for name, kind in _BEYOND.items():
        if name not in table.column_names:
            continue
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        right = text if pa.types.is_string(kind) else number
        column = column.cast(kind, safe=False) if right else pa.nulls(len(table), kind)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _more_of_columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """What :func:`_more` says of each row, as columns ``milliseconds`` and ``beside``."""
    of = {
        name: table[name] if name in table.column_names else pa.nulls(len(table), kind)
        for name, kind in _BEYOND.items()
    }
    took, stood_in, refused = of["latency_ms"], of["fallback"], of["refused_model"].is_valid()
    right = pc.and_(pc.greater_equal(took, 0), pc.less(took, _LONGEST))
    took = pc.round(pc.if_else(pc.and_(right, pc.is_null(stood_in)), took, None), round_mode="half_to_even")
    failed = pc.if_else(pc.equal(stood_in, _LOADING), None, "fallback")
    beside = pc.if_else(stood_in.is_valid(), failed, pc.if_else(refused, "safety_violation", None))
    return {"milliseconds": took.cast(pa.int64()), "beside": beside.cast(pa.string())}


def _more(event: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """What the gateway logs of a reply beyond the format, where it is what it should be.

    Returns:
        the reply's latency, and what the reply is beside a reply: ``safety_violation`` (not shown, or not to its end)
        or ``fallback`` (the champion's, since the arm's model failed). The champion's latency and violations are not
        the arm's. A model that is still being loaded has not failed: any worker that starts would end a test.
    """
    if isinstance(fallback := event.get("fallback"), str):
        return None, None if fallback == _LOADING else "fallback"
    latency = event.get("latency_ms")
    is_number = isinstance(latency, int | float) and not isinstance(latency, bool) and 0 <= latency < _LONGEST
    violation = "safety_violation" if isinstance(event.get("refused_model"), str) else None
    return round(latency) if is_number else None, violation  # type: ignore[arg-type]
