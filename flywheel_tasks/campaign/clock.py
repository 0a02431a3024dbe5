"""How long a campaign's steps took, and how long the rest will take."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any

from flywheel_tasks.campaign.folder import Folder
from flywheel_tasks.campaign.records import launches
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json, write_json


def words_of(seconds: float) -> str:
    """A time in hours and minutes."""
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Clock:
    """Measures steps, and tells the time left.

    Args:
        folder: of the campaign.
        plan: its settings.
        found: records of the generations that are over.
    """

    def __init__(self, folder: Folder, plan: Campaign, found: Sequence[dict[str, Any]]) -> None:
        self._folder, self._plan, self._found = folder, plan, found
        self.launches = launches(found)

    def of(self, name: str) -> dict[str, float]:
        """Seconds of each step of a generation: of its longest run, if kills made it run more than once."""
        path = self._folder.seconds
        found: dict[str, float] = read_json(path).get(name, {}) if path.exists() else {}
        return found

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Measure a step, and say that it runs."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json({"generation": name, "step": title, "since": since}, self._folder.now)
        started = time.monotonic()
        yield
        path = self._folder.seconds
        all_of = read_json(path) if path.exists() else {}
        mine = all_of.setdefault(name, {})
        mine[title] = max(mine.get(title, 0.0), time.monotonic() - started)
        write_json(all_of, path)

    def left(self, name: str) -> float:
        """Seconds until the end, if what is left is launched: the median of the generations so far, each.

        The over-optimised generation counts as one more.

        Args:
            name: of the generation that runs; what its steps took is taken off.
        """
        ordinary = [sum(r["seconds"].values()) for r in self._found if not r["over_optimised"]]
        each = median(ordinary) if ordinary else 60 * self._plan.minutes_per_generation
        number = len(self._found) + 1
        more = self._plan.launches - self.launches + (number <= self._plan.overoptimise_at)
        more = min(more, self._plan.max_generations - len(self._found))
        return max(0.0, more * each - sum(self.of(name).values()))
