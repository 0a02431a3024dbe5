"""Events of a user's warehouse, through ibis: extracted once into dated Parquet partitions, which are then the logs.

``logs.location`` is ``ibis+`` and a URL of :func:`ibis.connect`, e.g. ``ibis+duckdb:///events.db``. Environment
variables in it (``${PGPASSWORD}``) are filled in when it is opened, so that no secret stands in a file. The partitions
follow the rules of every other log (``docs/raw-logs.md``); their names hold the digest of their contents, so they never
change.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.settings import Warehouse
from flywheel_tasks.settings.traffic import WAREHOUSE
from flywheel_tasks.storage.urls import filled_in, shown, told
from flywheel_tasks.traffic.log_window import first_day
from flywheel_tasks.traffic.logs import LogsError, of_place

if TYPE_CHECKING:
    import ibis

_BATCH_ROWS = 65_536
EPOCH = date(1970, 1, 1)
_MIN_SHARE = 0.1  # of the median day's events: with fewer a day is not the newest one
_NEAR_DAYS = 90  # days with events that the median is of: traffic of years ago says nothing of today's


def _open(location: str) -> "ibis.BaseBackend":
    import ibis

    try:
        return ibis.connect(_filled_in(location))
    except Exception as error:  # drivers raise errors of their own
        raise _unusable(location, "opened", error) from None


def _filled_in(location: str) -> str:
    return filled_in(location.removeprefix(WAREHOUSE))


def _unusable(location: str, how: str, error: Exception) -> LogsError:
    said = told(error, _filled_in(location))
    return LogsError(f"{shown(location)}: cannot be {how}: {type(error).__name__}: {said}")


def _table(
    connection: "ibis.BaseBackend", location: str, kind: str, name: str, rename: Mapping[str, str]
) -> "ibis.Table":
    """A table of events of one type, with the columns that can be fields."""
    *database, table = name.split(".")
    try:
        found = connection.table(table, database=tuple(database) or None)
    except Exception as error:
        raise LogsError(
            f"{shown(location)}: logs.warehouse.tables.{kind}: no table {name} ({type(error).__name__})"
        ) from None
    time = next((old for old, new in rename.items() if new == "time" and old in found.columns), "time")
    if time not in found.columns:
        raise LogsError(f"{shown(location)}: table {name} has no column time")
    if not (found[time].type().is_timestamp() and found[time].type().timezone):
        raise LogsError(
            f"{shown(location)}: table {name}: {time} is {found[time].type()}; it must be a timestamp with a time zone"
        )
    return found.rename(time=time) if time != "time" else found


def _day_counts(table: "ibis.Table") -> Counter[int]:
    """Events by UTC day, in days since 1970."""
    timed = table.filter(table["time"].notnull())
    day = (timed["time"].epoch_seconds() // 86_400).name("day")  # ibis opens sessions in UTC
    rows = timed.group_by(day).aggregate(events=timed.count()).to_pyarrow()
    days = zip(rows["day"].to_pylist(), rows["events"].to_pylist(), strict=True)
    return Counter({day: events for day, events in days if day is not None})  # an infinite time has no day


def newest_day(counts: Mapping[int, int], today: date | None) -> int | None:
    """The newest day that is over and has enough events to be one: a few with a wrong clock decide nothing.

    Args:
        counts: events by day, in days since 1970; only days that have any.
        today: in UTC; it and later days count only where there is no other. None: all days are over.

    Returns:
        the day, in days since 1970; None if there is none.
    """
    begun = (today - EPOCH).days if today else None
    days = sorted(day for day in counts if begun is None or day < begun) or sorted(counts)
    for end in range(len(days), 0, -1):
        near = days[max(0, end - _NEAR_DAYS) : end]
        if counts[near[-1]] >= _MIN_SHARE * median(counts[day] for day in near):
            return near[-1]
    return None


def _newest(tables: Mapping[Any, "ibis.Table"], today: date | None) -> date:
    """See :func:`newest_day`."""
    # Cards are few and of any age, and would make the median day a small one.
    counts = sum((_day_counts(table) for kind, table in tables.items() if kind != "card"), Counter[int]())
    if not counts and "card" in tables:
        counts = _day_counts(tables["card"])
    day = newest_day(counts, today)
    if day is None:
        raise LogsError("the warehouse holds no event with a time")
    return EPOCH + timedelta(days=day)


def _columns(table: "ibis.Table", kind: str) -> "ibis.Table":
    import ibis

    return table if "type" in table.columns else table.mutate(type=ibis.literal(kind))


def _batches(rows: "ibis.Table") -> pa.RecordBatchReader:
    backend: Any = rows.get_backend()
    if backend.name == "duckdb":  # ibis 12 calls what DuckDB 2 no longer has
        return backend.con.sql(backend.compile(rows)).to_arrow_reader(_BATCH_ROWS)
    return rows.to_pyarrow_batches(chunk_size=_BATCH_ROWS)


def _write(rows: "ibis.Table", path: Path) -> bool:
    """Write rows, sorted, as Parquet; whether there are any."""
    order = [name for name in ("time", "event_id") if name in rows.columns]
    count = 0
    with (
        _batches(rows.order_by(order)) as batches,
        pq.ParquetWriter(path, batches.schema, compression="zstd") as file,
    ):
        for batch in batches:
            file.write_table(pa.Table.from_batches([batch]))
            count += batch.num_rows
    return count > 0


def extract(
    location: str,
    warehouse: Warehouse,
    newest_days: int,
    rename: Mapping[str, str],
    root: Path,
    today: date | None = None,
    earlier: Iterable[Mapping[str, Any]] = (),
    late_days: int = 0,
) -> dict[str, Any]:
    """Extract the newest days, and all days since the last generation's: the document ``inputs/logs.json``.

    Args:
        location: ``ibis+`` and a URL.
        warehouse: which tables, and where the partitions go.
        newest_days: days, counted back from the newest one that has a tenth of the median day's events.
        rename: old field names to new ones.
        root: the workspace.
        today: in UTC; a day that is not over is not the newest one, unless there is no other. None: all are over.
        earlier: what earlier generations pinned, the newest first.
        late_days: so many days before the newest ones, at most, are extracted.

    Returns:
        as :func:`flywheel_tasks.traffic.logs.pin_logs`, with the folder of the partitions as location.

    Raises:
        LogsError: the warehouse cannot be read, or a table lacks what every event has.
    """
    connection = _open(location)
    try:
        tables = {
            kind: _table(connection, location, kind, name, rename) for kind, name in warehouse.tables.items()
        }
        last = _newest(tables, today)
        folder = root / warehouse.extract_to
        since = first_day(last, newest_days, of_place(warehouse.extract_to, root, earlier), late_days)
        partitions = [
            partition
            for kind, table in tables.items()
            for back in range(1 if kind == "card" else (last - since).days + 1)
            if (partition := _partition(table, kind, last - timedelta(days=back), back == 0, folder))
            is not None
        ]
        older = _has_earlier(tables["message"], since)
    except LogsError:
        raise
    except Exception as error:
        raise _unusable(location, "read", error) from None
    finally:
        connection.disconnect()
    partitions.sort(key=lambda item: item["path"])
    return {"location": warehouse.extract_to, "earlier": older, "partitions": partitions}


def _has_earlier(messages: "ibis.Table", day: date) -> bool:
    """Whether anything was said before a day (UTC)."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return bool(messages.filter(messages["time"] < start).limit(1).count().to_pyarrow().as_py())


def _partition(
    table: "ibis.Table", kind: str, day: date, newest: bool, folder: Path
) -> dict[str, Any] | None:
    """One day's events of a type; later ones go with the newest day, and so do those without a time, to quarantine.

    All cards count as the newest day's: an old card may be talked to today.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    time = table["time"]
    if not newest:
        table = table.filter((time >= start) & (time < start + timedelta(days=1)))
    elif kind != "card":
        table = table.filter((time >= start) | time.isnull())
    rows = _columns(table, kind)
    home = folder / f"date={day}"
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f"_{kind}-{os.getpid()}.parquet"  # a listing of logs passes it over
    try:
        if not _write(rows, temporary):
            return None
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
        name = f"{kind}-{digest[:16]}.parquet"
        temporary.replace(home / name)
    finally:
        temporary.unlink(missing_ok=True)
    return {"path": f"date={day}/{name}", "sha256": f"sha256:{digest}", "bytes": size}
