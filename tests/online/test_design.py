"""The size of a test is planned for the users whom the test will have."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.online.design import DesignError, days_needed, make_design
from flywheel_tasks.online.exposed import Window, population
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.online.metrics import METRICS, pairs
from flywheel_tasks.online.sums import sums_by
from flywheel_tasks.settings import load_settings
from tests.online.people import START, make_plan
from tests.online.test_event_place import set_

DAYS, WEEK = 21, 7
NOW = START + timedelta(days=DAYS, hours=3)
TEXT, TIME = pa.string(), pa.timestamp("us", tz="UTC")


def write(folder: Path, **columns: tuple[list, pa.DataType]) -> None:
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({name: pa.array(*found) for name, found in columns.items()}), folder / "a.parquet"
    )


def write_tables(root: Path, said: list[tuple], *, signals: list[tuple] = ()) -> None:
    """Messages (user, time, role), and the exposures of a test of the last week: at each message of a user in it."""
    start = START + timedelta(days=DAYS - WEEK)
    shown = [(user, time) for user, time, role in said if role == "user" and time >= start]

    def columns(rows: list[tuple], *names: str) -> dict[str, tuple[list, pa.DataType]]:
        return {
            name: ([row[place] for row in rows], TIME if name == "time" else TEXT)
            for place, name in enumerate(names)
        }

    fixed = {"source": "user", "experiment": "g0001", "arm": "control"}
    texts = {name: ([value] * len(shown), TEXT) for name, value in fixed.items()}
    write(root / "tables/exposures", **columns(shown, "user_id", "time"), **texts)
    latency = {"latency_ms": ([900.0 if role == "assistant" else None for *_, role in said], pa.float64())}
    write(root / "tables/messages", **columns(said, "user_id", "time", "role"), **latency)
    write(root / "tables/signals", **columns(signals, "user_id", "time", "signal"))
    set_(root, "ab", events="tables")


def people(users: int) -> list[tuple]:
    """Messages of users of whom many come once in a few weeks, some several times a day."""
    generator, said = np.random.default_rng(5), []
    for user in range(users):
        rate = generator.gamma(0.5, 0.35)  # sessions a day
        for day in range(DAYS):
            for _ in range(generator.poisson(rate)):
                time = START + timedelta(days=day, seconds=int(generator.integers(0, 80_000)))
                for _ in range(generator.geometric(0.4)):
                    answered = time + timedelta(seconds=4)
                    said += [(f"u{user}", time, "user"), (f"u{user}", answered, "assistant")]
                    time += timedelta(minutes=1)
    return said


def test_a_plan_counts_whom_and_what_the_test_will_count(root: Path) -> None:
    write_tables(root, people(600))
    design = make_design(root, lift_percent=5, power=0.8, now=NOW)
    settings = load_settings(root / "params.yaml")
    end = START + timedelta(days=DAYS)
    with open_events(settings, root, make_plan()) as events:
        found = population(events, Window(end - timedelta(days=WEEK), end), settings.ab.rule)
        (tested,) = sums_by(found.users, ["arm"], pairs()).values()
    assert design["past"]["users"] == tested.n
    assert design["past"]["users_per_day"] == pytest.approx(tested.n / WEEK)  # both arms are all users
    for name in ("breadth", "depth", "active_days"):
        planned, numer = design["metrics"][name], METRICS[name].numer
        assert planned["mean"] == pytest.approx(tested.total(numer) / tested.n), name
        assert planned["cuped"]["users"] < planned["users"], name


def test_whoever_only_got_replies_or_gave_signals_plans_no_test(root: Path) -> None:
    at = START + timedelta(days=DAYS - 1)
    write_tables(root, [("u1", at, "assistant")], signals=[("u1", at, "love"), ("u2", at, "love")])
    with pytest.raises(DesignError, match="less than two users who would be in a test"):
        make_design(root, lift_percent=5, power=0.8, now=NOW)


def test_days_are_those_of_the_past_and_then_its_mean_rate() -> None:
    """Half of all users are in the arms; after the past's three days 200 had written."""
    by_day = [100, 150, 200]
    assert [days_needed(users, by_day, 0.5) for users in (50, 75, 100, 101, 400)] == [1, 2, 3, 4, 12]
    assert days_needed(None, by_day, 0.5) is None
    assert days_needed(50, [0, 0, 0], 0.5) is None
