"""Logs that lack one arm's part of a day: told apart from chance, and from an arm that fails or silences its users."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from flywheel_tasks.online.analysis import analyse_population
from flywheel_tasks.online.checks import day_faults
from flywheel_tasks.online.days import DayLogs
from flywheel_tasks.online.exposed import Population, Window, population
from flywheel_tasks.online.guardrails import look_document
from flywheel_tasks.online.log_events import Events
from tests.online import people
from tests.online.people import RULE, START, make_plan

PLAN = make_plan()
FULL = DayLogs(exposures=300, messages=250, writers=90, entrants=5)
FEW = DayLogs(exposures=9, messages=9, writers=9, entrants=9)


def with_day(day: int, **arms: DayLogs) -> Population:
    """A good test of three days whose second or third has these logs; no logs change what its users did."""
    arm, users = people.drawn(np.random.default_rng(3), 2_000, lift=0.4, days=3)
    made = people.population(arm, users, 3)
    days = [*made.by_day]
    days[day] = {**days[day], **arms}
    return replace(made, by_day=tuple(days))


@pytest.mark.parametrize(
    ("logs", "of_other", "lost"),
    [
        (DayLogs(), FULL, ["exposures", "messages"]),
        (DayLogs(exposures=200), FULL, ["messages"]),
        (DayLogs(messages=200, writers=80, answers=400), FULL, ["exposures"]),
        # Who comes for the first time knows no arm yet: nobody keeps ten of them away.
        (DayLogs(), DayLogs(exposures=10, messages=1, writers=1, entrants=10), ["exposures", "messages"]),
        (DayLogs(), FEW, []),  # may be chance
        (DayLogs(exposures=200, answers=400), FULL, []),  # nobody wanted a second reply
        (DayLogs(messages=200, writers=80, answers=400, fallbacks=200), FULL, []),  # the champion stood in
    ],
)
def test_logs_of_one_arm_that_are_lost_are_no_effect(logs: DayLogs, of_other: DayLogs, lost: list) -> None:
    faults = day_faults(with_day(1, candidate=logs, control=of_other), PLAN)
    said = f"day 2 of 3 has no {' and no '.join(lost)} of arm candidate, and has them of arm control"
    assert faults == ([said] if lost else [])


def test_a_candidate_may_silence_its_users_but_not_double_what_they_do() -> None:
    some = DayLogs(exposures=40, messages=40, writers=30)
    assert day_faults(with_day(1, candidate=DayLogs(), control=some), PLAN) == []
    assert len(day_faults(with_day(1, candidate=some, control=DayLogs()), PLAN)) == 1


@pytest.mark.parametrize("arm", ["control", "candidate"])
@pytest.mark.parametrize("over", [True, False])
def test_a_day_that_has_only_begun_lacks_both_arms_or_none(arm: str, over: bool) -> None:
    one = with_day(2, **{arm: DayLogs()})
    neither = with_day(2, control=DayLogs(), candidate=DayLogs())
    begun = Window(START, START + timedelta(days=2, hours=3))
    assert len(day_faults(replace(one, window=begun), PLAN, over=over)) == 1
    assert len(day_faults(replace(neither, window=begun), PLAN, over=over)) == (0 if over else 1)


@pytest.mark.parametrize(("arm", "lift"), [("control", 0.4), ("candidate", -0.6)])
def test_a_test_that_lacks_one_arms_day_neither_promotes_nor_stops(arm: str, lift: float) -> None:
    """What the lost day takes from an arm looks like the other one's merit; and no stop is taken back."""
    of, users = people.drawn(np.random.default_rng(3), 2_000, lift=lift, days=3)
    whole = people.population(of, users, 3)
    assert analyse_population(PLAN, whole, simulated=False)["advice"] == ("promote" if lift > 0 else "reject")
    assert look_document(PLAN, whole)["result"] == ("go_on" if lift > 0 else "stop")
    lost = replace(whole, by_day=(whole.by_day[0], {**whole.by_day[1], arm: DayLogs()}, whole.by_day[2]))
    reason = f"day 2 of 3 has no exposures and no messages of arm {arm}, and has them of arm "
    found, look = analyse_population(PLAN, lost, simulated=False), look_document(PLAN, lost)
    assert (found["result"], found["advice"], look["result"]) == ("invalid", None, "unknown")
    assert found["reasons"][0].startswith(reason)
    assert look["reasons"] == found["reasons"]
    assert look["guardrails"]["depth"]["pvalue"] is not None


def read(exposures: list[tuple], activity: list[tuple], days: int = 3) -> Population:
    """The population of ``(user, time, arm)`` and ``(user, time, kind)``."""

    def table(rows: list[tuple], names: tuple[str, ...], **more: Any) -> ibis.Table:
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        return ibis.memtable(pa.table({name: list(values) for name, values in columns.items()} | more))

    shown = table(exposures, ("user", "time", "arm"), source=["user"] * len(exposures))
    none = pa.nulls(len(activity), pa.int64())
    done = table(activity, ("user", "time", "kind"), milliseconds=none)
    return population(Events(shown, done, {}), Window(START, START + timedelta(days=days)), RULE)


def at(day: int, hour: float) -> datetime:
    return START.replace(tzinfo=None) + timedelta(days=day, hours=hour)


def test_days_are_counted_by_arm() -> None:
    shown = [(1, at(0, 1), "control"), (1, at(0, 3), "control"), (2, at(0, 2), "candidate")]
    shown += [(3, at(1, 1), "control"), (4, at(1, 2), "candidate"), (2, at(2, 2), "candidate")]
    done = [(1, at(0, 3), "message"), (1, at(0, 4), "message"), (2, at(0, 5), "message")]
    done += [
        (4, at(1, 2), "message"),
        (4, at(1, 2.5), "reply"),
        (4, at(0, 9), "reply"),
        (3, at(1, 3), "message"),
    ]
    done += [(1, at(2, 1), "message"), (1, at(2, 2), "fallback"), (2, at(2, 3), "message")]
    first, second, third = read(shown, done).by_day
    assert first == {
        "control": DayLogs(exposures=2, messages=2, writers=1, entrants=1),
        "candidate": DayLogs(exposures=1, messages=1, writers=1, entrants=1),
    }
    # Where one arm lacks something, what came with the exposures is counted, too; before them it is nobody's.
    assert second["candidate"] == DayLogs(exposures=1, messages=0, writers=0, entrants=1, answers=2)
    assert second["control"] == DayLogs(exposures=1, messages=1, writers=1, entrants=1, answers=1)
    assert third["control"] == DayLogs(exposures=0, messages=1, writers=1, answers=1, fallbacks=1)
