"""Events that cannot be read: one error, which says whether time may mend it and tells no secret."""

import sqlite3
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.online import event_trial, log_events
from flywheel_tasks.online.event_errors import EventsError, UnreachableEventsError, readable
from flywheel_tasks.online.exposed import PopulationError
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.storage.urls import told
from tests.online.tables import PLAN, figures, settings_of, write_tables


@pytest.mark.parametrize(
    ("place", "said", "kind"),
    [
        ("exports", "ab.events: exports cannot be read: IOException", UnreachableEventsError),
        (
            "duckdb://ada:secret@{root}/none/house.duckdb",
            "/none/house.duckdb cannot be read",
            UnreachableEventsError,
        ),
        (
            "duckdb://{root}/house.duckdb",
            "house.duckdb cannot be read: TableNotFound",
            UnreachableEventsError,
        ),
        ("nowhere://ada:secret@there", "ab.events: there cannot be read: ValueError", EventsError),
    ],
)
def test_events_that_are_not_there_are_one_error(
    root: Path, place: str, said: str, kind: type[EventsError]
) -> None:
    duckdb.connect(str(root / "house.duckdb")).close()
    with pytest.raises(EventsError) as found:
        figures(root, events=place.format(root=root))
    assert type(found.value) is kind
    assert said in str(found.value)
    assert "secret" not in str(found.value)
    assert "\n" not in str(found.value)


class OperationalError(Exception):
    """What a driver calls its errors of a server."""


class DataError(Exception):
    """What a driver calls its errors of a value."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OperationalError("could not connect to server: Connection refused"), UnreachableEventsError),
        (ConnectionResetError("by peer"), UnreachableEventsError),
        (OperationalError("FATAL: password authentication failed for user ada"), EventsError),
        (OperationalError("(1045, Access denied for user ada)"), EventsError),
        (ImportError("No module named psycopg"), EventsError),
        (DataError("invalid input: call me on 555-0100"), EventsError),
    ],
)
def test_only_what_time_may_mend_is_unreachable(error: Exception, kind: type[EventsError]) -> None:
    with pytest.raises(EventsError) as found, readable("postgres://there/db"):
        raise error
    assert type(found.value) is kind
    assert "555" not in str(found.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), TypeError("x"), KeyError("x"), AssertionError("x"), PopulationError("x")]
)
def test_what_is_wrong_with_the_one_who_asks_is_no_error_of_the_events(
    root: Path, events: list[dict], error: BaseException
) -> None:
    write_tables(root / "tables", events)
    settings = settings_of(root, events="tables")
    with pytest.raises(type(error)) as found, open_events(settings, root, PLAN):
        raise error
    assert found.value is error


def test_an_error_of_the_database_in_a_query_is_one_error(root: Path) -> None:
    """ibis asks a warehouse only when a result is wanted, and each has errors of its own."""
    house = root / "house.db"
    with sqlite3.connect(house) as con:
        for name, columns in log_events.TABLES.items():
            columns = (*columns, "latency_ms")
            con.execute(f"create table {name} ({', '.join(f'{column} text' for column in columns)})")
    settings = settings_of(root, events=f"sqlite://{house}")
    with pytest.raises(EventsError, match=r"house\.db cannot be read: OperationNotDefinedError"):
        figures(root, events=settings.ab.events)
    with pytest.raises(EventsError, match="OperationNotDefinedError"):  # before the start, too
        event_trial.try_events(settings, root, PLAN)
    with (
        pytest.raises(UnreachableEventsError, match="database is locked"),
        open_events(settings, root, PLAN),
    ):
        raise sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("place", "said", "shown"),
    [
        ("postgres://u:p%40ss@db/x", "cannot log in with p@ss", "cannot log in with ***"),
        ("postgres://u:p%40ss@db/x", "password=p%40ss, again p@ss", "password=***, again ***"),
        ("postgres://u:p@db/x", "permission denied, password p", "permission denied, password ***"),
        ("postgres://db/x?password=a+b&sslmode=require", "no 'a b' at db", "no '***' at db"),
        ("postgres://u:p@db/x", "postgres://u:p@db/x is down", "db/x is down"),
    ],
)
def test_no_error_tells_a_password(place: str, said: str, shown: str) -> None:
    assert told(OSError(f"{said}\nmore"), place) == shown


def test_a_value_that_cannot_be_read_is_not_told(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    path = root / "tables/messages/part-0.parquet"
    table = pq.read_table(path)
    times = pa.array(["call me on 555-0100"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("time"), "time", times), path)
    with pytest.raises(EventsError, match="a value is not what its column should have") as found:
        figures(root, events="tables")
    assert "555" not in str(found.value)
