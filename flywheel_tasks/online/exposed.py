"""Who was in an A/B test and what each did, as one table of users.

A user is in the test from the first exposure on, whatever they do later (cumulative exposure); what counts is what they
do after it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir

from flywheel_tasks.online.days import DayLogs, logs_by_day
from flywheel_tasks.online.log_events import COUNTED, Events, computed
from flywheel_tasks.storage.experiment_records import MOST_DAYS, Rule

_DAY = 86_400
# Three counts of up to two million share a 64-bit number.
_SHARE, _BITS = 3, 21
# Kinds of activity, by their code, and what their counts are called.
_KINDS, _COUNTS = ("message", "reply", *COUNTED), ("messages", "replies", *COUNTED)
# Cohorts by messages in the days before the test: the last that applies.
TAKEN = "ab.segments: {} is the name of a column that the analysis makes itself: give the exposures' column another one"
_COHORTS = (("new", 0), ("occasional", 1), ("regular", 20))


class PopulationError(ValueError):
    """The table of users cannot be made; the message says why."""


@dataclass(frozen=True)
class Window:
    """The time of a test, in whole seconds: what falls into a second counts as at its beginning.

    A test day is 24 hours from the start, not a date.

    Attributes:
        start: first moment, UTC.
        end: first moment after it, UTC.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        # The day of an event is counted in whole seconds (:func:`_day_of`): every event before the end has one then.
        for name in ("start", "end"):
            object.__setattr__(self, name, getattr(self, name).replace(microsecond=0))

    @property
    def days(self) -> int:
        """Number of test days, a begun one included."""
        return max(1, -((self.start - self.end) // timedelta(days=1)))

    def until(self, moment: datetime) -> "Window":
        """The part of it before a moment."""
        return Window(self.start, max(self.start, min(self.end, moment)))


@dataclass(frozen=True)
class Population:
    """The users of a test.

    Attributes:
        users: a row a user: ``arm`` (empty if the logs have none), ``arms`` (how many arms they saw), ``assigned``,
            ``day`` (of the first exposure), the outcomes ``active``, ``active_days``, ``messages``, ``replies``,
            ``milliseconds``, ``timed_replies`` and :data:`COUNTED`, ``messages_0``... (by test day), ``active``,
            ``messages``, ``replies`` and signals before the test with the prefix ``pre_``, ``cohort``, and the segment
            columns.
        window: the time it covers.
        by_day: what the logs hold of each arm on each test day.
        description: of the logs.
    """

    users: ir.Table
    window: Window
    by_day: tuple[Mapping[str, DayLogs], ...]
    description: Mapping[str, Any]


def _naive(moment: datetime) -> Any:
    return ibis.timestamp(moment.astimezone(UTC).replace(tzinfo=None))


def _day_of(time: Any, start: datetime) -> Any:
    # Some databases, DuckDB among them, round a fraction of a second to the nearest one.
    seconds = time.truncate("s").epoch_seconds().cast("int64")
    return ((seconds - int(start.timestamp())) // _DAY).cast("int64")


def log_window(events: Events, days: int) -> Window | None:
    """The window of a test on the logs' own clock: from the day of the first exposure, ``days`` long at most.

    For simulated users, whose logs are not of the days on which the test runs.

    Returns:
        None if nobody was exposed.
    """
    first, last = (
        events.exposures.aggregate(first=events.exposures.time.min(), last=events.exposures.time.max())
        .to_pyarrow()
        .to_pylist()[0]
        .values()
    )
    if first is None:
        return None
    start = first.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
    told = min(days, (last.replace(tzinfo=UTC) - start).days + 1)
    return Window(start, start + timedelta(days=told))


def without_days(events: Events, window: Window, days: Collection[int]) -> Events:
    """The events but for those of some test days, of either arm: whoever came first on one comes first later.

    Args:
        events: of a test.
        window: of it.
        days: numbers of its days, from 0.
    """

    def others(table: ir.Table) -> ir.Table:
        return table.filter(~_day_of(table.time, window.start).isin(sorted(days)))

    return replace(events, exposures=others(events.exposures), activity=others(events.activity))


def _shown(events: Events, window: Window, rule: Rule) -> ir.Table:
    """The exposures that count."""
    rows = events.exposures
    rows = rows.filter(
        (rows.time >= _naive(window.start))
        & (rows.time < _naive(window.end))
        & rows.source.isin(rule.include_sources)
    )
    # No arm is an arm, too, one that no plan has: nulls would vanish from every count.
    return rows.mutate(arm=rows.arm.cast("string").fill_null(""))


def _exposed(rows: ir.Table, segments: Sequence[str]) -> ir.Table:
    """A row a user: first exposure, arms, whether the plan gave them the arm."""
    checked = {"assigned": rows.assigned.all()} if "assigned" in rows.columns else {}
    return rows.group_by("user").aggregate(
        first=rows.time.min(),
        arm=rows.arm.min(),
        arms=(rows.arm.min() != rows.arm.max()).cast("int64") + 1,
        **checked,
        **{name: rows[name].cast("string").argmin(rows.time) for name in segments},
    )


def _acts_on(events: Events, exposed: ir.Table, window: Window, days: Sequence[int]) -> ir.Table:
    """A row an act of an exposed user on some days, from the moment of the first exposure on."""
    first, last = (window.start + timedelta(days=day) for day in (min(days), max(days) + 1))
    acts = events.activity
    acts = acts.filter((acts.time >= _naive(first)) & (acts.time < _naive(min(last, window.end))))
    acts = acts.inner_join(exposed.select("user", "first", "arm"), "user")
    acts = acts.filter(acts.time >= acts.first)
    return acts.select("arm", "kind", day=_day_of(acts.time, window.start))


def _cells(events: Events, exposed: ir.Table, window: Window, rule: Rule) -> ir.Table:
    """A row an event that counts: the user, the cell (a place in :func:`_names`) and a reply's latency."""
    start, end = window.start, window.end
    acts = events.activity
    acts = acts.filter(
        (acts.time >= _naive(start - timedelta(days=rule.pre_days))) & (acts.time < _naive(end))
    )
    acts = acts.inner_join(exposed.select("user", "first"), "user")
    before = acts.time < _naive(start)
    # What is done at the moment of the first exposure led to it: the message that the first reply of the arm answers.
    since = acts.time > acts.first
    code: Any = ibis.literal(-1, "int8")
    # The commonest kind is compared first.
    for place, kind in reversed(list(enumerate(_KINDS))):
        code = ibis.ifelse(acts.kind == kind, ibis.literal(place, "int8"), code)
    acts = acts.filter(before | since).mutate(code=code, before=before, day=_day_of(acts.time, start))
    cells = _names(window.days)
    after = ibis.ifelse(acts.code == 0, acts.day, cells.index(_COUNTS[1]) - 1 + acts.code)
    cell = ibis.ifelse(acts.before, cells.index(f"pre_{_COUNTS[0]}") + acts.code, after)
    # A small cell makes the rows of the grouping small, and they are most of an analysis' memory.
    return acts.filter(acts.code >= 0).select("user", "milliseconds", cell=cell.cast("int8"))


def _names(days: int) -> list[str]:
    """Names of the counts, a cell each."""
    by_day = (f"messages_{day}" for day in range(days))
    return [*by_day, *_COUNTS[1:], *(f"pre_{name}" for name in _COUNTS)]


def _totals(events: Events, exposed: ir.Table, window: Window, rule: Rule) -> ir.Table:
    """A row a user who did anything: counts since the first exposure, by day, and before the test.

    Events are counted by user and cell; then a user's counts, a few rows, become columns. In one step each event would
    carry a sum for each of the two dozen counts through the grouping, which made an analysis take nearly twice as long.
    """
    cells = _cells(events, exposed, window, rule)
    counts = computed(
        cells.group_by("user", "cell").aggregate(
            n=cells.count(),
            timed=cells.milliseconds.count(),
            milliseconds=cells.milliseconds.sum().cast("int64"),
        ),
        scratch=events.scratch,
    )
    names = _names(window.days)
    replies = counts.cell == names.index("replies")
    # Several counts share the bits of one number on the way: most of the time goes by the number of columns. If a
    # user has too many events for that, each count has its own.
    share = 1 if counts.n.max().fill_null(0).execute() >= 1 << _BITS else _SHARE
    place = (counts.cell % share).cast("int32") * ibis.literal(
        _BITS, "int32"
    )  # PostgreSQL shifts by no bigint
    parts = counts.mutate(column=counts.cell // share, bits=counts.n << place)
    columns = range(-(-len(names) // share))
    packed = parts.group_by("user").aggregate(
        **{f"p{column}": ibis.ifelse(parts.column == column, parts.bits, 0).bit_or() for column in columns},
        timed_replies=parts.timed.max(where=replies),
        milliseconds=parts.milliseconds.max(where=replies),
    )

    def count(cell: int) -> Any:
        column = packed[f"p{cell // share}"]
        return column if share == 1 else (column >> (cell % share * _BITS)) & ((1 << _BITS) - 1)

    return packed.select(
        "user", "timed_replies", "milliseconds", **{name: count(cell) for cell, name in enumerate(names)}
    )


def _sum(table: ir.Table, names: Iterable[str]) -> Any:
    total: Any = ibis.literal(0, "int64")
    for name in names:
        total = total + table[name]
    return total


def _with_outcomes(users: ir.Table, days: int) -> ir.Table:
    """The columns that follow from the counts."""
    daily = [f"messages_{day}" for day in range(days)]
    users = users.mutate(messages=_sum(users, daily))
    active_days: Any = ibis.literal(0, "int64")
    for name in daily:
        active_days = active_days + (users[name] > 0).cast("int64")
    cohort: Any = ibis.literal(_COHORTS[0][0])
    for name, least in _COHORTS[1:]:
        cohort = ibis.ifelse(users.pre_messages >= least, name, cohort)
    return users.mutate(
        active=(users.messages > 0).cast("int64"),
        active_days=active_days,
        pre_active=(users.pre_messages > 0).cast("int64"),
        cohort=cohort,
    )


def reserved(names: Iterable[str]) -> list[str]:
    """Those of some names of segments that the users' table has columns of its own for: figures would be of those."""
    own = {"user", "first", "arm", "arms", "assigned", "day", "cohort", "messages", "active", "active_days"}
    own |= {"pre_active", "timed_replies", "milliseconds", *_names(MOST_DAYS)}
    return [name for name in names if name in own]


def population(events: Events, window: Window, rule: Rule, segments: Sequence[str] = ()) -> Population:
    """Make the table of a test's users, in the database that holds the events.

    Args:
        events: of the test.
        window: the time that counts.
        rule: of the plan.
        segments: columns of the exposures that become columns of the users, by the first exposure.

    Raises:
        PopulationError: too many days, or a segment that the exposures do not have, or whose name is taken.
    """
    if window.days > MOST_DAYS:
        raise PopulationError(f"a test of {window.days} days; at most {MOST_DAYS} can be analysed")
    if unknown := [name for name in segments if name not in events.segment_columns]:
        raise PopulationError(f"ab.segments: the exposures have no column {', '.join(unknown)}")
    if taken := reserved(segments):
        raise PopulationError(TAKEN.format(", ".join(taken)))
    shown = _shown(events, window, rule)
    exposed = computed(_exposed(shown, segments), scratch=events.scratch)
    totals = _totals(events, exposed, window, rule)
    counts = [name for name in totals.columns if name != "user"]
    users = exposed.left_join(totals, "user")
    users = users.select(
        *(exposed[name] for name in exposed.columns if name not in ("user", "first")),
        day=_day_of(exposed["first"], window.start),
        **{name: totals[name].fill_null(0).cast("int64") for name in counts},
    )
    users = computed(_with_outcomes(users, window.days), scratch=events.scratch)
    by_day = logs_by_day(
        shown.select("arm", day=_day_of(shown.time, window.start)),
        users,
        lambda days: _acts_on(events, exposed, window, days),
        window.days,
    )
    return Population(users=users, window=window, by_day=by_day, description=events.description)
