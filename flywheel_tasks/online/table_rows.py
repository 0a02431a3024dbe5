"""What a team's tables hold beside what counts: left out and counted, or an error where it would count wrongly."""

import re
from collections.abc import Iterable
from datetime import date, timedelta

import ibis
import ibis.expr.types as ir

from flywheel_tasks.online.event_errors import EventsError

# What the roles of messages are to an analysis; None: nothing, and rightly so.
KINDS: dict[str, str | None] = {"user": "message", "assistant": "reply", "system": None, "tool": None}
_SHOWN = 5
_NAME = re.compile(r"[\w.-]{1,30}")


def of_days(table: ir.Table, days: tuple[date, date] | None) -> ir.Table:
    """The rows of these days, a day more each way, as zones differ; all rows if there are no days."""
    if days is None:
        return table
    time = table.time.cast("timestamp")
    first, after = days[0] - timedelta(days=1), days[1] + timedelta(days=2)
    return table.filter(
        (time >= ibis.timestamp(first.isoformat())) & (time < ibis.timestamp(after.isoformat()))
    )


def that_may_count(exposures: ir.Table, sources: Iterable[str], days: tuple[date, date] | None) -> ir.Table:
    """The exposures of these days and sources; those without a time or a source may be of them.

    Args:
        exposures: of a test.
        sources: that count.
        days: as in :func:`of_days`.
    """
    dated = of_days(exposures, days)
    if days is not None:
        dated = dated.union(exposures.filter(exposures.time.isnull()))
    return dated.filter(dated.source.isin(["", *sources]) | dated.source.isnull())


def _counts(table: ir.Table, column: str) -> dict[str | None, int]:
    """Rows by a column's value, the most first."""
    rows = (
        table.group_by(value=table[column].cast("string")).aggregate(n=table.count()).to_pyarrow().to_pylist()
    )
    return {row["value"]: row["n"] for row in sorted(rows, key=lambda row: (-row["n"], row["value"] or ""))}


def _listed(counts: Iterable[tuple[str | None, int]]) -> str:
    """Values with their numbers; what does not look like a name may be anything, and is not told."""
    told = []
    for value, n in list(counts)[:_SHOWN]:
        name = (
            "null" if value is None else repr(value) if _NAME.fullmatch(value) else "a value that is no name"
        )
        told.append(f"{name} ({n} rows)")
    return ", ".join(told)


def ignored_roles(messages: ir.Table) -> dict[str, int]:
    """How many messages are of a role that is nobody's in a conversation of two, by role.

    Args:
        messages: with ``role``.

    Raises:
        EventsError: there are others. Who spoke is not known then: a reply would count as what a user wrote, or the
            other way round.
    """
    counts = _counts(messages, "role")
    if wrong := [item for item in counts.items() if item[0] not in KINDS]:
        raise EventsError(
            f"ab.events: table messages: role is {_listed(wrong)}; it must be one of {', '.join(KINDS)}, written so"
        )
    return {str(role): n for role, n in counts.items() if KINDS[str(role)] is None}


def _plain(name: str) -> str:
    """A name without what spellings differ in: case, hyphens, plurals."""
    return re.sub("[^a-rt-z]", "", name.lower())


def check_signals(signals: ir.Table, known: Iterable[str]) -> None:
    """Refuse another spelling of a signal, which would count as none at all; other signals are a team's own.

    Args:
        signals: with ``signal``.
        known: the names that count.

    Raises:
        EventsError: there is one.
    """
    right = {_plain(name): name for name in known}
    for name in _counts(signals, "signal"):
        counted = right.get(_plain(name or ""))
        if counted is not None and name != counted:
            raise EventsError(f"ab.events: table signals: signal is {name!r}; it must be written {counted}")


def without(table: ir.Table, *columns: str) -> dict[str, int]:
    """How many rows have null, or an empty text, in a column, by column; columns without any are left out."""
    counts = {}
    for name in columns:
        column = table[name]
        empty = [column.isnull(), *([column == ""] if column.type().is_string() else [])]
        # One by one: a database that knows that there are none then reads nothing.
        counts[name] = sum(int(table.filter(rows).count().execute()) for rows in empty)
    return {name: n for name, n in counts.items() if n}


def of_somebody(table: ir.Table) -> ir.Table:
    """The rows that have a user; a database hashes null, too, and the others would be those of one busy user."""
    users = table.user_id
    return table.filter(users != "" if users.type().is_string() else users.notnull())
