"""Which partitions a generation reads: the whole days since the last one, and what came late for those before."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

_FORM = re.compile(r"\.(?:jsonl(?:\.gz)?|parquet)$")


class Window(NamedTuple):
    """The partitions of a generation.

    Attributes:
        names: of the window's partitions, sorted.
        late: earlier days' partitions that no generation has read under this name, sorted.
        read: digests of what earlier generations read: of these a late partition is a copy, or has a new name only.
        since: first day of the window.
        until: last day of it.
        earlier: whether there are logs from before it.
        unread: days with logs, between the windows of generations, that none of them reads.
    """

    names: list[str]
    late: list[str]
    read: frozenset[str]
    since: date
    until: date
    earlier: bool
    unread: list[date]


class _Read(NamedTuple):
    """What earlier generations read."""

    names: set[str]
    digests: set[str]
    covered: list[tuple[date, date]]

    def covers(self, day: date) -> bool:
        return any(begin <= day <= end for begin, end in self.covered)


def partition_date(path: str) -> date:
    """The date in a partition's path."""
    return date.fromisoformat(path.split("date=", 1)[1][:10])


def newest_days(
    names: Sequence[str],
    days: int,
    today: date | None,
    earlier: Iterable[Mapping[str, Any]] = (),
    late_days: int = 0,
) -> Window:
    """The partitions of the newest days, and of all days since the last generation's.

    A day that is not over is left to the next generation, which has the rest of it, too: so windows meet without a
    gap, also where a generation took longer than the window has days. Files that came for the days of an earlier
    generation, and that none has read, are read as well.

    Args:
        names: all partitions; not none.
        days: in the window, at least.
        today: in UTC; None: all days are over. Where there are logs of no other day, today's are read.
        earlier: what earlier generations pinned of the same place (``inputs/logs.json``), the newest first.
        late_days: so many days before the newest ones, at most, the window begins and late files are of.
    """
    dates = {name: partition_date(name) for name in names}
    over = [day for day in dates.values() if today is None or day < today]
    newest = max(over or dates.values())
    since, first, read = _reach(newest, days, earlier, late_days)
    within = sorted(name for name, day in dates.items() if since <= day <= newest)
    waiting = {name: day for name, day in dates.items() if first <= day < since}
    late = [name for name, day in waiting.items() if read.covers(day) and not _was_read(name, read, dates)]
    begun = min((begin for begin, _ in read.covered), default=since)
    unread = sorted({day for day in dates.values() if begun < day < since and not read.covers(day)})
    is_earlier = any(day < since for day in dates.values())
    return Window(within, sorted(late), frozenset(read.digests), since, newest, is_earlier, unread)


def first_day(newest: date, days: int, earlier: Iterable[Mapping[str, Any]], late_days: int) -> date:
    """The first day of the window that ends with a day; the other arguments are those of :func:`newest_days`."""
    return _reach(newest, days, earlier, late_days)[0]


def _reach(
    newest: date, days: int, earlier: Iterable[Mapping[str, Any]], late_days: int
) -> tuple[date, date, _Read]:
    """The first day of the window, the first that late files may be of, and what was read."""
    since = newest - timedelta(days=days - 1)
    first = since - timedelta(days=late_days)
    read = _read(first, earlier)
    if read.covered:
        last = max(end for _, end in read.covered)
        since = max(first, min(since, last + timedelta(days=1)))
    return since, first, read


def _read(first: date, earlier: Iterable[Mapping[str, Any]]) -> _Read:
    """What generations read that ended at a date or later, and the newest one.

    Args:
        first: that date; with another generation that ended before it the search ends.
        earlier: as in :func:`newest_days`.
    """
    read = _Read(set(), set(), [])
    for pinned in earlier:
        paths = {partition["path"] for partition in pinned["partitions"]}
        if not paths:
            continue
        begin = (
            date.fromisoformat(pinned["since"]) if pinned.get("since") else min(map(partition_date, paths))
        )
        end = date.fromisoformat(pinned["until"]) if pinned.get("until") else max(map(partition_date, paths))
        if end < first and read.covered:
            break
        read.covered.append((begin, end))
        read.names.update(paths)
        read.digests.update(partition["sha256"] for partition in pinned["partitions"])
    return read


def _was_read(name: str, read: _Read, present: Mapping[str, date]) -> bool:
    """Whether a partition was read, under its name, or in a form that is no longer there: logs are packed later."""
    if name in read.names:
        return True
    forms = {_FORM.sub(form, name) for form in (".jsonl", ".jsonl.gz", ".parquet")}
    return any(form in read.names and form not in present for form in forms)
