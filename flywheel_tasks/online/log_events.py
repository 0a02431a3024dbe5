"""The events that an A/B test needs, from the raw logs or from a team's warehouse, as two lazy tables.

The one place that knows where events come from. ``exposures`` has ``user``, ``time``, ``arm``, ``source`` and, from
raw logs, ``assigned`` (whether the plan gives the user this arm); ``activity`` has ``user``, ``time``, ``kind``
(message, reply, or a signal's name), ``milliseconds`` (a reply's latency, or null) and perhaps ``source``. ``user`` is
a 64-bit key of the id, ``time`` a timestamp in UTC without a zone. No text and no user id goes further than here.
"""

import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir

from flywheel_tasks.online.event_errors import EventsError, readable
from flywheel_tasks.online.kept_spools import Spools
from flywheel_tasks.online.table_rows import (
    KINDS,
    check_signals,
    ignored_roles,
    of_days,
    of_somebody,
    that_may_count,
    without,
)
from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.engine import threads_within
from flywheel_tasks.storage.experiment_records import Override, Plan
from flywheel_tasks.storage.urls import filled_in, shown
from flywheel_tasks.traffic.logs import pin_logs

# Signals on replies that an analysis counts, and what became of replies. Logs need not have all: one that nobody ever
# gave is said to be absent.
COUNTED = ("thumb_up", "thumb_down", "love", "regenerate", "report", "safety_violation", "fallback")
_LINES = 1 << 40  # more than a partition has
_THREAD_MB = 500  # of the joins and groupings of an analysis
# Columns that a warehouse's or a folder's tables must have.
TABLES = {
    "exposures": ("user_id", "time", "source", "experiment", "arm"),
    "messages": ("user_id", "time", "role"),
    "signals": ("user_id", "time", "signal"),
}


@dataclass(frozen=True)
class Events:
    """What the logs hold of a test.

    Attributes:
        exposures: of this test only.
        activity: of everyone.
        description: of the logs, for the analysis' document: where, digest, counts. Never a user id.
        segment_columns: further columns of ``exposures``, which may be segments.
        scratch: whether they are read in a scratch database of our own (:func:`connect`), which may get tables.
    """

    exposures: ir.Table
    activity: ir.Table
    description: Mapping[str, Any]
    segment_columns: tuple[str, ...] = ()
    scratch: bool = False


def _threads(limit: str) -> int:
    """Threads that a limit as DuckDB reads it (``1500MB``, ``2 GiB``) is enough for; two where it has another unit."""
    found = re.fullmatch(r"\s*(\d+)\s*([MG])i?B\s*", limit, re.IGNORECASE)
    if found is None:
        return 2
    return threads_within(int(found[1]) * (1000 if found[2] in "gG" else 1), _THREAD_MB)


def connect(folder: Path) -> Any:
    """A DuckDB of its own in a scratch folder, which spills there instead of growing in memory.

    Args:
        folder: for its file and for what does not fit in memory.
    """
    limit = os.environ.get("FLYWHEEL_AB_MEMORY", "1500MB")
    con = ibis.duckdb.connect(
        folder / "ab.duckdb",
        temp_directory=str(folder / "spill"),
        memory_limit=limit,
        threads=_threads(limit),
        preserve_insertion_order=False,
        autoinstall_known_extensions=False,
    )
    # Zoned times become UTC only if the session is in UTC; without the ICU extension there is no other zone.
    with suppress(duckdb.InvalidInputException, duckdb.CatalogException):
        con.raw_sql("SET TimeZone = 'UTC'")
    return con


def computed(expression: ir.Table, *, scratch: bool) -> ir.Table:
    """A table that is computed once, where its data are.

    Not ibis' ``cache``, whose tables are dropped when they are collected, and fail if the connection went first.

    Args:
        expression: what to compute.
        scratch: its database is :func:`connect`'s, and goes with its folder. Anyone else's database gets a temporary
            table only, which goes with the connection and needs no right to write.
    """
    name = f"flywheel_ab_{uuid.uuid4().hex}"
    return expression.get_backend().create_table(name, expression, temp=not scratch)


def _within(days: tuple[date, date] | None) -> Callable[[str], bool]:
    """Whether a partition may hold events of these days; a day more each way, as the date only groups files."""
    if days is None:
        return lambda name: True
    first, last = days[0] - timedelta(days=1), days[1] + timedelta(days=1)
    return lambda name: first <= date.fromisoformat(name.split("date=", 1)[1][:10]) <= last


def _digest(partitions: list[Mapping[str, Any]]) -> str:
    """Of the partitions' names and contents."""
    names = "".join(f"{item['path']} {item['sha256']}\n" for item in partitions)
    return bytes_digest(names.encode())


def _raw(
    settings: Settings,
    root: Path,
    plan: Plan | None,
    overrides: tuple[Override, ...],
    days: tuple[date, date] | None,
    con: Any,
    folder: Path,
) -> Events:
    location = settings.logs.location
    partitions = list(pin_logs(location, root, _within(days))["partitions"])
    spools = folder / "spools"
    counts = Spools(root, location, plan, overrides, settings.ingest).write(partitions, spools)
    spool = con.read_parquet(f"{spools}/*/*.parquet", filename=True)
    number = spool.filename.split("/")[-2].cast("int64")
    spool = spool.mutate(ordinal=number * _LINES + spool.ordinal).drop("filename")
    # An id that comes again is the same event written twice, or a fault of the product's: the first one counts.
    firsts = spool.group_by("event").aggregate(ordinal=spool.ordinal.min())
    unique = computed(spool.semi_join(firsts, ["event", "ordinal"]), scratch=True)
    return Events(
        exposures=unique.filter(unique.kind == "exposure").select(
            "user", "time", "arm", "source", "assigned"
        ),
        activity=unique.filter(unique.kind != "exposure").select(
            "user", "time", "kind", "milliseconds", "source"
        ),
        description={
            "from": "logs",
            "partitions": len(partitions),
            "digest": _digest(partitions),
            "unreadable_lines": counts["unreadable"],
            "repeated_events": counts["rows"] - int(unique.count().execute()),
            "staff_exposures": counts["staff"],
        },
        scratch=True,
    )


def _columns(name: str, table: ir.Table) -> ir.Table:
    if missing := [column for column in TABLES[name] if column not in table.columns]:
        raise EventsError(f"ab.events: table {name} lacks the columns {', '.join(missing)}")
    return table


def _tables(
    location: str,
    plan: Plan | None,
    tables: Mapping[str, ir.Table],
    days: tuple[date, date] | None,
    *,
    scratch: bool,
) -> Events:
    """Events of tables in which ids are unique: ingested ones, or a warehouse's."""
    exposures, messages, signals = (_columns(name, tables[name]) for name in TABLES)
    exposures = exposures.filter(exposures.experiment == (plan.experiment if plan else None))
    sources = plan.rule.include_sources if plan else ()
    description = {
        "from": shown(location),
        "ignored_messages": ignored_roles(of_days(messages, days)),
        "exposures_without": without(that_may_count(exposures, sources, days), "user_id", "time", "source"),
        "messages_without": without(of_days(messages, days), "user_id"),
        "signals_without": without(of_days(signals, days), "user_id"),
    }
    check_signals(of_days(signals, days), COUNTED)
    exposures, messages, signals = (of_somebody(table) for table in (exposures, messages, signals))
    extra = tuple(name for name in exposures.columns if name not in (*TABLES["exposures"], "event_id"))

    def keyed(table: ir.Table, **columns: Any) -> ir.Table:
        # As text: a database hashes 12 and '12' differently, and one of the tables may have numbers or UUIDs.
        user = table.user_id.cast("string").hash()
        return table.select(user=user, time=table.time.cast("timestamp"), **columns)

    messages = messages.filter(messages.role.isin([role for role, kind in KINDS.items() if kind is not None]))
    kind = ibis.ifelse(messages.role == "assistant", KINDS["assistant"], KINDS["user"])
    if {"parent_id", "model"} <= set(messages.columns):  # a greeting answers nobody, and no arm wrote it
        greeting = (kind == "reply") & messages.parent_id.isnull() & messages.model.isnull()
        kind = ibis.ifelse(greeting, "greeting", kind)
    timed = "latency_ms" in messages.columns
    if plan is not None and "latency_ms" in plan.rule.guardrails and not timed:
        raise EventsError(
            "ab.events: table messages lacks the column latency_ms, which is a guardrail of the test; take it out of "
            "ab.guardrails, and run stage launch again (flywheel generation run), where no latency is logged"
        )
    latency = messages.latency_ms.cast("int64") if timed else ibis.null("int64")
    activity = ibis.union(
        keyed(messages, kind=kind, milliseconds=latency),
        keyed(signals, kind=signals.signal, milliseconds=ibis.null("int64")),
    )
    return Events(
        exposures=keyed(
            exposures, arm=exposures.arm, source=exposures.source, **{name: exposures[name] for name in extra}
        ),
        activity=activity,
        description=description,
        segment_columns=extra,
        scratch=scratch,
    )


def refuse_a_warehouse_as_logs(settings: Settings) -> None:
    """A generation extracts a warehouse's newest days; a test needs its own and those before, anew at each look.

    Raises:
        EventsError: ``ab.events`` is ``logs``, and these are a warehouse.
    """
    if settings.ab.events == "logs" and settings.logs.in_a_warehouse:
        raise EventsError(
            f"ab.events: logs: no test can be read from a warehouse (logs.location: {shown(settings.logs.location)}) "
            "in this way; set ab.events to the warehouse's URL (docs/experiments.md, Where the events come from)"
        )


@contextmanager
def open_events(
    settings: Settings,
    root: Path,
    plan: Plan | None,
    overrides: tuple[Override, ...] = (),
    days: tuple[date, date] | None = None,
) -> Iterator[Events]:
    """Open the events of a test, from where ``ab.events`` says.

    ``logs``: the raw logs (``logs.location``), pinned by digest; spooled as keys of ids without texts, which are kept
    while the test runs (:mod:`flywheel_tasks.online.kept_spools`). A folder or ``s3://`` prefix: Parquet files
    ``exposures/*.parquet``, ``messages/*.parquet``, ``signals/*.parquet`` with the columns of :data:`TABLES`. A URL:
    tables of these names in a warehouse that ibis can open. In both of these events must be unique, and ids may be
    raw or keyed hashes, as long as they are the same in all three.

    Args:
        settings: all settings.
        root: the workspace.
        plan: of the test; None: no exposures are wanted.
        overrides: staff whose exposures do not count (raw logs only: elsewhere they are never logged).
        days: first and last day of interest, which raw logs are read for and tables are checked for; by default all.

    Yields:
        the events; gone after the block.

    Raises:
        LogsError: there are no logs, or they changed while they were read.
        UnreachableEventsError: the place or a table is not there yet, or cannot be reached just now.
        EventsError: the place is malformed, lacks a column, has roles of messages or spellings of signals that nobody
            knows, or cannot be read, here or in the block's queries; or it is ``logs``, and these are a warehouse.
    """
    refuse_a_warehouse_as_logs(settings)
    place = settings.ab.events
    is_warehouse = "://" in place and not place.startswith("s3://")
    if is_warehouse:
        place = filled_in(place)
    with tempfile.TemporaryDirectory(prefix="flywheel-ab-") as scratch:
        folder = Path(scratch)
        con: Any
        if is_warehouse:
            with readable(place):
                con = ibis.connect(place)
        else:
            con = connect(folder)
        try:
            if place == "logs":
                yield _raw(settings, root, plan, overrides, days, con, folder)
                return
            with readable(place):
                if is_warehouse:
                    tables = {name: con.table(name) for name in TABLES}
                else:
                    base = place.rstrip("/") if place.startswith("s3://") else str(root / place)
                    tables = {name: con.read_parquet(f"{base}/{name}/*.parquet") for name in TABLES}
                events = _tables(place, plan, tables, days, scratch=not is_warehouse)
            with readable(place, con):
                yield events
        finally:
            con.disconnect()
