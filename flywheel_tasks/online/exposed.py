"""Who was in an A/B test and what each did, as one table of users; and its sums, exact and small.

A user is in the test from the first exposure on, whatever they do later (cumulative exposure); what counts is what they
do after it. The sums (and sums of
products) of integer columns are integers: the same in any order and on any number of threads, so an analysis of the
same logs has the same digest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import ibis
import ibis.expr.types as ir
import tea_tasting as tt

from flywheel_tasks.online.log_events import Events, computed
from flywheel_tasks.storage.experiment_records import Rule

# Signals on replies that an analysis counts. Logs need not have all: one that nobody ever gave is said to be absent.
COUNTED = ("thumb_up", "thumb_down", "love", "regenerate", "report", "safety_violation")
_DAY = 86_400
# Sums of squared milliseconds outgrow 64 bits.
_WIDE = "decimal(38, 0)"
# Days are columns of the table of users.
MOST_DAYS = 60
# Cells of what an event counts for: messages of a test day are its number; the rest start here.
_SINCE, _BEFORE = 100, 200
# Cohorts by messages in the days before the test: the last that applies.
_COHORTS = (("new", 0), ("occasional", 1), ("regular", 20))


class PopulationError(ValueError):
    """The table of users cannot be made; the message says why."""


@dataclass(frozen=True)
class Window:
    """The time of a test. A test day is 24 hours from the start, not a date.

    Attributes:
        start: first moment, UTC.
        end: first moment after it, UTC.
    """

    start: datetime
    end: datetime

    @property
    def days(self) -> int:
        """Number of test days, a begun one included."""
        return max(1, -(-int((self.end - self.start) / timedelta(seconds=1)) // _DAY))

    def until(self, moment: datetime) -> "Window":
        """The part of it before a moment."""
        return Window(self.start, max(self.start, min(self.end, moment)))


@dataclass(frozen=True)
class Population:
    """The users of a test.

    Attributes:
        users: a row a user: ``arm``, ``arms`` (how many arms they saw), ``assigned``, ``day`` (of the first
            exposure), the outcomes ``active``, ``active_days``, ``messages``, ``replies``, ``milliseconds``,
            ``timed_replies`` and :data:`COUNTED`, ``messages_0``... (by test day), ``active``, ``messages``,
            ``replies`` and signals before the test with the prefix ``pre_``, ``cohort``, and the segment columns.
        window: the time it covers.
        exposures_by_day: exposures on each test day.
        messages_by_day: messages of its users on each test day.
        description: of the logs.
    """

    users: ir.Table
    window: Window
    exposures_by_day: tuple[int, ...]
    messages_by_day: tuple[int, ...]
    description: Mapping[str, Any]

    def missing_days(self) -> list[int]:
        """Test days without any exposure, or without any message."""
        both = zip(self.exposures_by_day, self.messages_by_day, strict=True)
        return [day for day, counts in enumerate(both) if 0 in counts]


def _naive(moment: datetime) -> Any:
    return ibis.timestamp(moment.astimezone(UTC).replace(tzinfo=None))


def _day_of(time: Any, start: datetime) -> Any:
    return ((time.epoch_seconds().cast("int64") - int(start.timestamp())) // _DAY).cast("int64")


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


def _exposed(events: Events, window: Window, rule: Rule, segments: Sequence[str]) -> ir.Table:
    """A row a user: first exposure, arms, whether the plan gave them the arm."""
    rows = events.exposures
    rows = rows.filter(
        (rows.time >= _naive(window.start))
        & (rows.time < _naive(window.end))
        & rows.source.isin(rule.include_sources)
    )
    checked = {"assigned": rows.assigned.all()} if "assigned" in rows.columns else {}
    return rows.group_by("user").aggregate(
        first=rows.time.min(),
        arm=rows.arm.min(),
        arms=(rows.arm.min() != rows.arm.max()).cast("int64") + 1,
        **checked,
        **{name: rows[name].cast("string").argmin(rows.time) for name in segments},
    )


def _totals(events: Events, exposed: ir.Table, window: Window, rule: Rule) -> ir.Table:
    """A row a user who did anything: counts since the first exposure, by day, and before the test."""
    start, end = window.start, window.end
    acts = events.activity
    acts = acts.filter(
        (acts.time >= _naive(start - timedelta(days=rule.pre_days))) & (acts.time < _naive(end))
    )
    acts = acts.inner_join(exposed.select("user", "first"), "user")
    before = acts.time < _naive(start)
    # What is done at the moment of the first exposure led to it: the message that the first reply of the arm answers.
    since = acts.time > acts.first
    # What an event counts for, as one small number: comparing that is much cheaper than comparing texts once a column.
    names = ("messages", "replies", *COUNTED)
    code: Any = ibis.literal(-1, "int64")
    for place, kind in enumerate(("message", "reply", *COUNTED)):
        code = ibis.ifelse(acts.kind == kind, place, code)
    acts = acts.filter(before | since).mutate(code=code, before=before, day=_day_of(acts.time, start))
    cell = ibis.ifelse(
        acts.before, _BEFORE + acts.code, ibis.ifelse(acts.code == 0, acts.day, _SINCE + acts.code)
    )
    acts = acts.mutate(cell=cell).select("user", "cell", "milliseconds")
    timed = (acts.cell == _SINCE + 1) & acts.milliseconds.notnull()
    after = list(enumerate(names))[1:]
    return acts.group_by("user").aggregate(
        **{name: acts.count(where=acts.cell == _SINCE + place) for place, name in after},
        **{f"messages_{day}": acts.count(where=acts.cell == day) for day in range(window.days)},
        **{f"pre_{name}": acts.count(where=acts.cell == _BEFORE + place) for place, name in enumerate(names)},
        timed_replies=acts.count(where=timed),
        milliseconds=acts.milliseconds.sum(where=timed),
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


def population(events: Events, window: Window, rule: Rule, segments: Sequence[str] = ()) -> Population:
    """Make the table of a test's users, in the database that holds the events.

    Args:
        events: of the test.
        window: the time that counts.
        rule: of the plan.
        segments: columns of the exposures that become columns of the users, by the first exposure.

    Raises:
        PopulationError: too many days, or a segment that the exposures do not have.
    """
    if window.days > MOST_DAYS:
        raise PopulationError(f"a test of {window.days} days; at most {MOST_DAYS} can be analysed")
    if unknown := [name for name in segments if name not in events.segment_columns]:
        raise PopulationError(f"ab.segments: the exposures have no column {', '.join(unknown)}")
    exposed = computed(_exposed(events, window, rule, segments))
    totals = _totals(events, exposed, window, rule)
    counts = [name for name in totals.columns if name != "user"]
    users = exposed.left_join(totals, "user")
    users = users.select(
        *(exposed[name] for name in exposed.columns if name not in ("user", "first")),
        day=_day_of(exposed["first"], window.start),
        **{name: totals[name].fill_null(0).cast("int64") for name in counts},
    )
    users = computed(_with_outcomes(users, window.days))
    shown = events.exposures.filter(
        (events.exposures.time >= _naive(window.start)) & (events.exposures.time < _naive(window.end))
    )
    by_day = shown.group_by(day=_day_of(shown.time, window.start)).aggregate(n=shown.count()).to_pyarrow()
    exposures = {row["day"]: row["n"] for row in by_day.to_pylist()}
    daily = (
        users.aggregate(
            **{f"d{day}": users[f"messages_{day}"].sum().cast("int64") for day in range(window.days)}
        )
        .to_pyarrow()
        .to_pylist()[0]
    )
    return Population(
        users=users,
        window=window,
        exposures_by_day=tuple(exposures.get(day, 0) for day in range(window.days)),
        messages_by_day=tuple(int(daily[f"d{day}"] or 0) for day in range(window.days)),
        description=events.description,
    )


@dataclass(frozen=True)
class Sums:
    """Exact sums of one group of users.

    Attributes:
        n: users.
        sums: sum of each column.
        products: sum of the product of each pair of columns, by the sorted pair (a column with itself included).
    """

    n: int
    sums: Mapping[str, int]
    products: Mapping[tuple[str, str], int]

    def total(self, column: str) -> int:
        """Sum of a column."""
        return self.sums[column]

    def aggregates(self, columns: Iterable[str] | None = None) -> tt.aggr.Aggregates:
        """Mean, variance and covariance as tea-tasting takes them; correctly rounded.

        Args:
            columns: which; by default all.
        """
        n, wanted = self.n, set(self.sums if columns is None else columns)
        centred = {
            (a, b): Fraction(n * product - self.sums[a] * self.sums[b], n * (n - 1))
            for (a, b), product in self.products.items()
            if a in wanted and b in wanted
        }
        return tt.aggr.Aggregates(
            count_=n,
            mean_={name: self.sums[name] / n for name in sorted(wanted)},
            var_={a: float(value) for (a, b), value in centred.items() if a == b},
            cov_={pair: float(value) for pair, value in centred.items() if pair[0] != pair[1]},
        )


def sums_by(
    users: ir.Table, by: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, ...], Sums]:
    """Sums of groups of users, in one pass of the database.

    Args:
        users: rows with integer columns.
        by: columns that make the groups.
        pairs: whose products are needed; each column's own sum and square come with it.

    Returns:
        the sums by the group's values, sorted.
    """
    wanted = {(min(pair), max(pair)) for pair in pairs}
    columns = sorted({name for pair in wanted for name in pair})
    products = sorted(wanted | {(name, name) for name in columns})
    rows = (
        users.group_by(list(by))
        .aggregate(
            n=users.count(),
            **{f"s_{name}": users[name].sum().cast(_WIDE) for name in columns},
            **{f"p_{i}": (users[a] * users[b]).sum().cast(_WIDE) for i, (a, b) in enumerate(products)},
        )
        .to_pyarrow()
        .to_pylist()
    )
    found = {
        tuple(str(row[name]) for name in by): Sums(
            n=row["n"],
            sums={name: int(row[f"s_{name}"]) for name in columns},
            products={pair: int(row[f"p_{i}"]) for i, pair in enumerate(products)},
        )
        for row in rows
    }
    return dict(sorted(found.items()))
