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
        """Seconds of each step of a generation, of all its runs together; not of those that a kill cut short."""
        path = self._folder.seconds
        found: dict[str, float] = read_json(path).get(name, {}) if path.exists() else {}
        return found

    def resumed(self, name: str) -> bool:
        """Whether a kill cut a step of this generation short, so that it took longer than :meth:`of` knows."""
        now = read_json(self._folder.now) if self._folder.now.exists() else None
        return now is not None and now["generation"] == name and (now["resumed"] or not now["ended"])

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        """Measure a step, also one that fails, and say that it runs."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        now = {"generation": name, "step": title, "since": since, "resumed": self.resumed(name)}
        write_json(now | {"ended": False}, self._folder.now)
        started = time.monotonic()
        try:
            yield
        finally:
            path = self._folder.seconds
            all_of = read_json(path) if path.exists() else {}
            mine = all_of.setdefault(name, {})
            mine[title] = mine.get(title, 0.0) + time.monotonic() - started
            write_json(all_of, path)
            write_json(now | {"ended": True}, self._folder.now)

    def left(self, name: str) -> float:
        """Seconds until the end, if what is left is launched: the median of the generations so far, each.

        The over-optimised generation counts as one more. One that a kill cut short took longer than is known, and is
        left out of the median.

        Args:
            name: of the generation that runs; what its steps took is taken off.
        """
        ordinary = [
            sum(r["seconds"].values())
            for r in self._found
            if not r["over_optimised"] and not r.get("resumed", False)  # records made earlier do not say
        ]
        each = median(ordinary) if ordinary else 60 * self._plan.minutes_per_generation
        number = len(self._found) + 1
        more = self._plan.launches - self.launches + (number <= self._plan.overoptimise_at)
        more = min(more, self._plan.max_generations - len(self._found))
        return max(0.0, more * each - sum(self.of(name).values()))
