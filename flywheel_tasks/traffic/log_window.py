"""Which partitions a generation reads: the newest whole days, and what came late for the days read before."""

from collections.abc import Mapping, Sequence
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
    names: Sequence[str], days: int, today: date | None, last: Mapping[str, Any] | None
) -> Window:
    """The partitions of the newest days.

    A day that is not over is left to the next generation, which has the rest of it, too: windows of a week that are
    opened every week meet without a gap. Files that came for the days of the last generation after it was opened are
    read as well.

    Args:
        names: all partitions; not none.
        days: in the window.
        today: in UTC; None: all days are over. Where there are logs of no other day, today's are read.
        last: what the generation before pinned of the same place (``inputs/logs.json``), if there was one.
    """
    dates = {name: partition_date(name) for name in names}
    over = [day for day in dates.values() if today is None or day < today]
    newest = max(over or dates.values())
    since = newest - timedelta(days=days - 1)
    within = [name for name, day in dates.items() if since <= day <= newest]
    late = [name for name in _unread(last, names) if dates[name] < since] if last else []
    return Window(sorted(within + late), since, newest, any(day < since for day in dates.values()))


def _unread(last: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Partitions of the last generation's days that it did not read."""
    read = {partition["path"] for partition in last["partitions"]}
    if not read:
        return []
    first = date.fromisoformat(last["since"]) if last.get("since") else min(map(partition_date, read))
    end = date.fromisoformat(last["until"]) if last.get("until") else max(map(partition_date, read))
    return [name for name in names if name not in read and first <= partition_date(name) <= end]
