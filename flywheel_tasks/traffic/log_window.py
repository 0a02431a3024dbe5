"""Which partitions a generation reads: the newest whole days, and what came late for the days read before."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple


class Window(NamedTuple):
    """The partitions of a generation.

    Attributes:
        names: of the partitions, sorted.
        since: first day of the window.
        until: last day of it.
        earlier: whether there are logs from before it.
    """

    names: list[str]
    since: date
    until: date
    earlier: bool


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
    """The partitions of the newest days.

    A day that is not over is left to the next generation, which has the rest of it, too: windows of a week that are
    opened every week meet without a gap. Files that came for the days of an earlier generation, and that none has
    read, are read as well.

    Args:
        names: all partitions; not none.
        days: in the window.
        today: in UTC; None: all days are over. Where there are logs of no other day, today's are read.
        earlier: what earlier generations pinned of the same place (``inputs/logs.json``), the newest first.
        late_days: so many days before the window, at most, late files are of.
    """
    dates = {name: partition_date(name) for name in names}
    over = [day for day in dates.values() if today is None or day < today]
    newest = max(over or dates.values())
    since = newest - timedelta(days=days - 1)
    within = [name for name, day in dates.items() if since <= day <= newest]
    first = since - timedelta(days=late_days)
    waiting = {name: day for name, day in dates.items() if first <= day < since}
    late = _unread(waiting, first, earlier) if waiting else []
    return Window(sorted(within + late), since, newest, any(day < since for day in dates.values()))


def _unread(dates: Mapping[str, date], first: date, earlier: Iterable[Mapping[str, Any]]) -> list[str]:
    """Partitions of days that an earlier generation covered, without those that one of them read.

    Args:
        dates: of the partitions.
        first: the earliest date of interest; generations that ended before it are not looked at.
        earlier: as in :func:`newest_days`.
    """
    read: set[str] = set()
    covered: list[tuple[date, date]] = []
    for pinned in earlier:
        paths = {partition["path"] for partition in pinned["partitions"]}
        if not paths:
            continue
        begin = (
            date.fromisoformat(pinned["since"]) if pinned.get("since") else min(map(partition_date, paths))
        )
        end = date.fromisoformat(pinned["until"]) if pinned.get("until") else max(map(partition_date, paths))
        if end < first:
            break
        covered.append((begin, end))
        read |= paths
    return [
        name
        for name, day in dates.items()
        if name not in read and any(begin <= day <= end for begin, end in covered)
    ]
