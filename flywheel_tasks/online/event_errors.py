"""What can go wrong where a test's events are read, apart by whether time may mend it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
from ibis.common.exceptions import TableNotFound

from flywheel_tasks.storage.urls import shown, told

# What the drivers of databases (PEP 249) and Google's clients call their errors of a server or a file that does not
# answer. Drivers are optional, so their classes are known by name.
_PASSING = {"OperationalError", "InterfaceError", "ServerError"}
# Of those what stays as it is until somebody sets it right.
_REFUSED = re.compile(
    "password authentication|no password|authentication (failed|required)|login failed|access denied"
    "|permission denied|forbidden|pg_hba|download extension",
    re.IGNORECASE,
)


class EventsError(ValueError):
    """The place of events is malformed, lacks a column, refuses us or holds what cannot be read: it stays so."""


class UnreachableEventsError(EventsError):
    """The place or a table of it is not there yet, is being written, or cannot be reached just now."""


class OtherEventsError(EventsError):
    """The settings name another place than when the test was started: so it stays until they are put back."""


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _may_pass(error: Exception) -> bool:
    """Whether the next look may find it mended without anybody doing something."""
    # A file that DuckDB cannot make sense of may be one that is being written.
    kinds = (TableNotFound, ConnectionError, TimeoutError, FileNotFoundError, duckdb.InvalidInputException)
    if not isinstance(error, kinds) and not _PASSING & _names(error):
        return False
    return _REFUSED.search(str(error).partition("\n")[0]) is None


def _quotes_a_value(error: Exception) -> bool:
    """Whether its text quotes a value of the data, which may be anything; class 22 of SQL is that of data."""
    return "DataError" in _names(error) or str(getattr(error, "sqlstate", None)).startswith("22")


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0].lstrip("_")


def _of_queries(error: Exception, con: Any) -> bool:
    """Whether ibis or the driver of its connection raised it; not what is wrong in the code that asked."""
    drivers = {_root(type(getattr(con, name))) for name in ("con", "client") if hasattr(con, name)}
    roots = {"ibis", "sqlglot", "duckdb", *drivers} - {"builtins"}
    return isinstance(error, ConnectionError | TimeoutError) or any(
        _root(kind) in roots for kind in type(error).__mro__
    )


@contextmanager
def readable(place: str, con: Any = None) -> Iterator[None]:
    """Turn an error of a database into one that names the place; a query that needs too much memory stays what it is.

    ibis asks a database only when a result is wanted. So queries are made within it, too, not only the opening.

    Args:
        place: as ``ab.events`` has it.
        con: ibis' connection: of the block's errors only its own are turned, the others are the caller's. None: the
            block does nothing but open the place, so all are.

    Raises:
        UnreachableEventsError: there was one that may pass.
        EventsError: there was another.
    """
    try:
        yield
    except (EventsError, MemoryError, duckdb.OutOfMemoryException):
        raise
    except Exception as error:
        if con is not None and not _of_queries(error, con):
            raise
        said = "a value is not what its column should have" if _quotes_a_value(error) else told(error, place)
        kind = UnreachableEventsError if _may_pass(error) else EventsError
        raise kind(f"ab.events: {shown(place)} cannot be read: {type(error).__name__}: {said}") from None
