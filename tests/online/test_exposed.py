"""The table of users against counting the same events one by one."""

from collections import Counter
from datetime import timedelta

import ibis
import numpy as np
import pyarrow as pa
import pytest

from flywheel_tasks.online import exposed
from flywheel_tasks.online.exposed import COUNTED, PopulationError, Window, population
from flywheel_tasks.online.log_events import Events, connect
from tests.online.people import RULE, START

DAYS, USERS = 3, 40
KINDS = ("message", "reply", *COUNTED, "shared")


@pytest.fixture
def rows() -> dict[str, list[dict]]:
    """Exposures of most users, some twice; events before, at and after them, one user with many at once."""
    generator = np.random.default_rng(5)
    start = START.replace(tzinfo=None)

    def moment(earliest: float, latest: float):
        return start + timedelta(seconds=int(generator.uniform(earliest, latest) * 86_400))

    exposures = [
        {
            "user": user,
            "time": moment(0, DAYS),
            "arm": "control" if user % 2 else "candidate",
            "source": "user",
        }
        for user in [*range(USERS - 5), *range(10)]
    ]
    activity = [
        {"user": user, "time": moment(-RULE.pre_days - 1, DAYS + 1), "kind": kind, "milliseconds": latency}
        for user in range(USERS)
        for kind, latency in zip(
            generator.choice(KINDS, 60), generator.choice([None, 5, 900], 60), strict=True
        )
    ]
    activity += [
        {"user": 1, "time": start + timedelta(days=DAYS, seconds=-1), "kind": "message", "milliseconds": None}
    ] * 3000
    # What is done at the moment of the first exposure is not of the test.
    activity += [row | {"kind": "message", "milliseconds": None} for row in exposures]
    return {
        "exposures": exposures,
        "activity": [{key: row[key] for key in ("user", "time", "kind", "milliseconds")} for row in activity],
    }


def counted(rows: dict[str, list[dict]]) -> dict[int, Counter]:
    """The counts of every exposed user, event by event."""
    start = START.replace(tzinfo=None)
    first: dict[int, object] = {}
    for row in rows["exposures"]:
        first[row["user"]] = min(first.get(row["user"], row["time"]), row["time"])
    found: dict[int, Counter] = {user: Counter() for user in first}
    names = {"message": "messages", "reply": "replies"}
    for row in rows["activity"]:
        name, time = names.get(row["kind"], row["kind"]), row["time"]
        if row["user"] not in first or name == "shared":
            continue
        if start - timedelta(days=RULE.pre_days) <= time < start:
            found[row["user"]][f"pre_{name}"] += 1
        elif first[row["user"]] < time < start + timedelta(days=DAYS):
            found[row["user"]][f"messages_{(time - start).days}" if name == "messages" else name] += 1
            if name == "replies" and row["milliseconds"] is not None:
                found[row["user"]]["timed_replies"] += 1
                found[row["user"]]["milliseconds"] += int(row["milliseconds"])
    return found


@pytest.mark.parametrize("bits", [exposed._BITS, 12, 11])  # 3,000 fits into 12 bits, not into 11
def test_counts_are_those_of_counting_one_by_one(rows, tmp_path, monkeypatch, bits: int) -> None:
    monkeypatch.setattr(exposed, "_BITS", bits)
    con = connect(tmp_path)
    tables = {
        name: con.create_table(name, ibis.memtable(pa.Table.from_pylist(found)))
        for name, found in rows.items()
    }
    users = population(
        Events(tables["exposures"], tables["activity"], {}),
        Window(START, START + timedelta(days=DAYS)),
        RULE,
    ).users
    names = [f"messages_{day}" for day in range(DAYS)] + [
        "replies",
        *COUNTED,
        "timed_replies",
        "milliseconds",
    ]
    names += [f"pre_{name}" for name in ("messages", "replies", *COUNTED)]
    got = Counter(tuple(row[name] for name in names) for row in users.to_pyarrow().to_pylist())
    assert got == Counter(tuple(found[name] for name in names) for found in counted(rows).values())


@pytest.mark.parametrize("name", ["cohort", "day", "messages_0", "pre_report"])
def test_a_segment_called_as_a_column_of_the_analysis_is_refused(rows, tmp_path, name: str) -> None:
    """Its figures would be of that column."""
    con = connect(tmp_path)
    exposures = con.create_table("exposures", ibis.memtable(pa.Table.from_pylist(rows["exposures"])))
    events = Events(exposures.mutate(**{name: ibis.literal("a")}), exposures, {}, segment_columns=(name,))
    with pytest.raises(PopulationError, match=f"ab.segments: {name} is the name of a column"):
        population(events, Window(START, START + timedelta(days=DAYS)), RULE, [name])


def test_postgresql_can_shift_what_is_packed() -> None:
    """It shifts a bigint by an integer only; the database itself is not asked here."""
    table = ibis.table({"cell": "int64", "n": "int64"}, name="t")
    place = (table.cell % 3).cast("int32") * ibis.literal(exposed._BITS, "int32")
    assert "AS BIGINT" not in ibis.to_sql(table.select(x=table.n << place), dialect="postgres")


@pytest.mark.parametrize("fraction", [0, 900_000])
def test_what_is_said_in_a_tests_last_second_is_of_its_last_day(fraction: int) -> None:
    start = START.replace(microsecond=fraction)
    window = Window(start, start + timedelta(days=DAYS))
    assert window.days == DAYS

    def table(moment, **more) -> ibis.Table:
        return ibis.memtable(pa.table({"user": [1], "time": [moment.replace(tzinfo=None)], **more}))

    exposures = table(start + timedelta(seconds=1), arm=["control"], source=["user"])
    said = table(
        window.end - timedelta(milliseconds=100), kind=["message"], milliseconds=pa.array([None], pa.int64())
    )
    users = population(Events(exposures, said, {}), window, RULE).users.to_pyarrow().to_pylist()
    assert [(row[f"messages_{DAYS - 1}"], row["messages"], row["replies"]) for row in users] == [(1, 1, 0)]
