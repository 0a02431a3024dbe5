"""What the logs hold of each arm on each test day."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import ibis.expr.types as ir

from flywheel_tasks.storage.experiment_records import ArmName

ARMS: tuple[str, ...] = get_args(ArmName)


@dataclass(frozen=True)
class DayLogs:
    """What the logs hold of one arm on one test day.

    Attributes:
        exposures: to the arm.
        messages: of its users, after their first exposure.
        writers: users who wrote those.
        entrants: users whose first exposure it was.
        answers: messages and replies of its users from the moment of their first exposure on, so with the message that
            led to it and the reply that was shown; counted only where one arm lacks what the other has.
        fallbacks: replies of the champion to its users; counted as ``answers``.
    """

    exposures: int = 0
    messages: int = 0
    writers: int = 0
    entrants: int = 0
    answers: int = 0
    fallbacks: int = 0


def _one_lacks(arms: Mapping[str, DayLogs]) -> bool:
    """Whether one arm has no exposures or no messages, and the other has some."""
    counts = ([logs.exposures for logs in arms.values()], [logs.messages for logs in arms.values()])
    return any(0 in count and any(count) for count in counts)


def logs_by_day(
    shown: ir.Table, users: ir.Table, acts_on: Callable[[Sequence[int]], ir.Table], days: int
) -> tuple[Mapping[str, DayLogs], ...]:
    """Count what the logs hold, by test day and arm.

    Args:
        shown: a row an exposure: ``arm``, ``day``.
        users: of the test, with ``arm``, ``day`` and ``messages_0``...
        acts_on: a row an act of theirs on some days, from the first exposure on: ``arm``, ``day``, ``kind``. Asked only
            where an arm lacks what the other has: it takes another pass over these days' activity.
        days: of the test.
    """
    exposures = {
        (row["arm"], row["day"]): row["n"]
        for row in shown.group_by("arm", "day").aggregate(n=shown.count()).to_pyarrow().to_pylist()
    }
    daily = {day: users[f"messages_{day}"] for day in range(days)}
    counts = users.group_by("arm").aggregate(
        **{f"messages{day}": wrote.sum().cast("int64") for day, wrote in daily.items()},
        **{f"writers{day}": users.count(where=wrote > 0) for day, wrote in daily.items()},
        **{f"entrants{day}": users.count(where=users.day == day) for day in daily},
    )
    by_arm = {row["arm"]: row for row in counts.to_pyarrow().to_pylist()}
    found = [
        {
            arm: DayLogs(
                exposures=exposures.get((arm, day), 0),
                **{
                    name: by_arm.get(arm, {}).get(f"{name}{day}", 0)
                    for name in ("messages", "writers", "entrants")
                },
            )
            for arm in ARMS
        }
        for day in range(days)
    ]
    gaps = [day for day, arms in enumerate(found) if _one_lacks(arms)]
    if not gaps or any(arm not in by_arm for arm in ARMS):
        return tuple(found)
    acts = acts_on(gaps)
    rows = acts.group_by("arm", "day", "kind").aggregate(n=acts.count()).to_pyarrow().to_pylist()
    told = {(row["arm"], row["day"], row["kind"]): row["n"] for row in rows}
    for day in gaps:
        for arm, logs in found[day].items():
            message, reply, fallback = (
                told.get((arm, day, kind), 0) for kind in ("message", "reply", "fallback")
            )
            found[day][arm] = replace(logs, answers=message + reply, fallbacks=fallback)
    return tuple(found)
