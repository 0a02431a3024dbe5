"""Watching a running test: looks, an early stop, restarts, late logs; on a clock that the tests set."""

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.online import launch, log_events, promotion
from flywheel_tasks.online.analysis import analyse, analyse_population, arm_sums, look_at
from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.online.checks import day_faults
from flywheel_tasks.online.days import DayLogs
from flywheel_tasks.online.decision import harms
from flywheel_tasks.online.event_errors import EventsError, OtherEventsError, UnreachableEventsError
from flywheel_tasks.online.guardrails import check, look_document, watch
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.registry_state import Experiment, RegistryError
from tests.dags.small import ab_events, write_logs
from tests.online import people
from tests.online.conftest import approve
from tests.online.test_launch import run_launch

DAY = timedelta(days=1)


def events_of(root: Path, at: datetime, name: str, *, harmful: bool) -> list[dict[str, object]]:
    """One day of both arms; of a harmful candidate nobody wants a second reply."""
    return ab_events(read_json(root / "launch/plan.json"), 200, start=at, name=name, harmful=harmful)


def write_days(root: Path, experiment: Experiment, days: list[int], *, harmful: bool = False) -> None:
    for day in days:
        at = experiment.started_at + day * DAY
        write_logs(root, f"date={at:%Y-%m-%d}", events_of(root, at, f"d{day}", harmful=harmful))


@pytest.fixture
def experiment(root: Path) -> Experiment:
    """A test of seven days that has just started, on logs of real users."""
    params = root / "params.yaml"
    text = params.read_text().replace("source: simulated", "source: files")
    params.write_text(text.replace("planned_users: 10000", "planned_users: 200"))
    approve(root)
    run_launch(root)
    started = launch.start(root, by="ada")
    write_days(root, started, [-1])
    return started


def test_a_good_test_goes_on_to_its_end_whoever_watches(root: Path, experiment: Experiment) -> None:
    start = experiment.started_at
    assert watch(root, "g0001", "a", start).until == start + DAY
    assert registry_of(root).state().running().checks == ()  # no look is due yet
    write_days(root, experiment, [0, 1])
    for _ in range(2):  # again, as after a restart: nothing is recorded twice
        assert watch(root, "g0001", "a", start + 1.5 * DAY).until == start + 2 * DAY
    history = registry_of(root).history()
    assert [change.kind for change in history].count("guardrail_check") == 1
    # Nobody watched for days: it looks once, and goes on.
    write_days(root, experiment, [2, 3])
    assert watch(root, "g0001", "b", start + 3.9 * DAY).until == start + 4 * DAY
    checks = registry_of(root).state().running().checks
    assert [(item.day, item.result) for item in checks] == [(1, "go_on"), (3, "go_on")]
    write_days(root, experiment, [4, 5, 6])
    step = watch(root, "g0001", "b", experiment.ends_at)
    assert (step.until, step.stopped) == (None, None)


def test_a_harmful_arm_is_stopped_at_the_next_look(root: Path, experiment: Experiment) -> None:
    write_days(root, experiment, [0], harmful=True)
    step = watch(root, "g0001", "a", experiment.started_at + DAY)
    assert step.stopped.startswith(
        "stopped by a guardrail on day 2: Breadth: exposed users who wrote: worse by"
    )
    assert registry_of(root).state().running().checks[-1].result == "stop"
    promotion.rollback(root, "g0001", step.stopped, by="a")
    # Asked again after the rollback, it says the same and looks no more.
    assert watch(root, "g0001", "a", experiment.started_at + 2 * DAY).stopped == step.stopped
    assert len(registry_of(root).state().experiments["g0001"].checks) == 1


def test_a_stop_stands_whatever_is_looked_at_later(root: Path, experiment: Experiment) -> None:
    write_days(root, experiment, [0], harmful=True)
    first = check(root, "g0001", "a", experiment.started_at + DAY)
    assert first.result == "stop"
    # Whoever looked ignored it; later there is nothing to see any more.
    for path in (root / "data/logs").glob("date=*"):
        shutil.rmtree(path)
    for moment in (experiment.started_at + DAY, experiment.started_at + 3 * DAY):
        assert check(root, "g0001", "a", moment) == first
    assert watch(root, "g0001", "a", experiment.ends_at).stopped.startswith("stopped by a guardrail on day 2")


def test_a_day_without_logs_is_unknown_and_then_waited_for(root: Path, experiment: Experiment) -> None:
    start, end = experiment.started_at, experiment.ends_at
    write_days(root, experiment, [0, 1, 3, 4, 5, 6])
    assert watch(root, "g0001", "a", start + 3 * DAY).until == start + 4 * DAY
    look = registry_of(root).state().running().checks[-1]
    assert look.result == "unknown"
    assert any("day 3 of 3 has no logs" in reason for reason in look.reasons)
    assert watch(root, "g0001", "a", end).until == end + timedelta(hours=1)
    # Patience ends; the analysis will find the test invalid.
    assert watch(root, "g0001", "a", end + timedelta(hours=11.5)).until == end + timedelta(hours=12)
    assert watch(root, "g0001", "a", end + timedelta(hours=12)).until is None
    write_days(root, experiment, [2])
    assert watch(root, "g0001", "a", end + timedelta(hours=2)).until is None


@pytest.mark.parametrize("arm", ["control", "candidate"])
def test_a_day_of_one_arm_is_unknown_and_then_waited_for(
    root: Path, experiment: Experiment, arm: str
) -> None:
    write_days(root, experiment, [0, 1, 3, 4, 5, 6])
    day = experiment.started_at + 2 * DAY
    whole = ab_events(read_json(root / "launch/plan.json"), 400, start=day, name="d2")
    lost = {event["user_id"] for event in whole if event.get("arm") == arm}
    write_logs(root, f"date={day:%Y-%m-%d}", [event for event in whole if event["user_id"] not in lost])
    other = "control" if arm == "candidate" else "candidate"
    reason = f"day 3 of 3 has no exposures and no messages of arm {arm}, and has them of arm {other}"
    look = check(root, "g0001", "a", day + DAY)
    assert (look.result, look.reasons[0]) == ("unknown", reason)
    end = experiment.ends_at
    assert watch(root, "g0001", "a", end).until == end + timedelta(hours=1)
    write_logs(root, f"date={day:%Y-%m-%d}", whole)
    assert watch(root, "g0001", "a", end + timedelta(hours=1)).until is None
    assert check(root, "g0001", "a", day + DAY).result == "go_on"


@pytest.mark.parametrize("arm", ["control", "candidate", None])
def test_lost_logs_leave_no_harmful_arm_served(root: Path, experiment: Experiment, arm: str | None) -> None:
    """Of both arms, or of one: then its day and those beside it tell nothing, but the others do."""
    write_days(root, experiment, [0, 2, 3, 4], harmful=True)
    day = experiment.started_at + DAY
    events = [] if arm is None else events_of(root, day, "d1", harmful=True)
    lost = {event["user_id"] for event in events if event.get("arm") == arm}
    write_logs(root, f"date={day:%Y-%m-%d}", [event for event in events if event["user_id"] not in lost])
    look = check(root, "g0001", "a", day + 4 * DAY)
    assert look.result == "stop"
    assert "worse by" in look.reasons[0]
    assert any(reason.startswith("day 2 of 5 has no ") for reason in look.reasons)


def test_what_one_arm_lost_is_no_harm(root: Path, experiment: Experiment) -> None:
    """The day beside the lost one has logs of its first users only: the loss began within it."""
    write_days(root, experiment, [0, 4, 5])
    plan = read_json(root / "launch/plan.json")
    for number in (1, 2, 3):
        day = experiment.started_at + number * DAY
        whole = ab_events(plan, 600, start=day, name=f"d{number}")
        of = [event["user_id"] for event in whole if event.get("arm") == "candidate"]
        lost = set(of if number == 2 else of[: len(of) * 9 // 10])
        kept = [
            event
            for event in whole
            if event["user_id"] not in lost or (event["type"] == "exposure" and number != 2)
        ]
        write_logs(root, f"date={day:%Y-%m-%d}", kept)
    look = check(root, "g0001", "a", experiment.started_at + 6 * DAY)
    assert (look.result, look.reasons[0].partition(" has no ")[0]) == ("unknown", "day 3 of 6")
    with look_at(
        root, load_settings(root / "params.yaml"), experiment, experiment.started_at + 6 * DAY
    ) as found:
        assert harms(arm_sums(found.population), experiment.plan.rule)[1] != []


def test_a_look_does_not_miss_the_logs_of_a_day_that_has_just_begun(
    root: Path, experiment: Experiment
) -> None:
    """Every look on schedule comes some seconds after a day's end; the analysis and the wait for it stay strict."""
    moment = experiment.started_at + DAY + timedelta(seconds=20)
    write_days(root, experiment, [0])
    assert check(root, "g0001", "a", moment).result == "go_on"
    assert check(root, "g0001", "a", moment + DAY).reasons == (
        "day 2 of 3 has no logs: 0 exposures, 0 messages",
    )
    with look_at(root, load_settings(root / "params.yaml"), experiment, moment) as look:
        assert day_faults(look.population, experiment.plan) == [
            "day 2 of 2 has no logs: 0 exposures, 0 messages"
        ]
        assert day_faults(look.population, experiment.plan, over=True) == []


def test_a_test_is_judged_by_the_events_that_it_was_started_on(root: Path, experiment: Experiment) -> None:
    write_days(root, experiment, [0, 1])
    params = root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("source: files", "source: simulated"))
    for moment in (
        experiment.started_at + DAY,
        experiment.ends_at,
    ):  # as `unknown`, it would guard nobody unseen
        with pytest.raises(
            OtherEventsError, match="was started on files logs data/logs; now it says simulated"
        ):
            watch(root, "g0001", "a", moment)
    assert registry_of(root).state().running().checks == ()
    with pytest.raises(OtherEventsError, match="Put it back"):
        analyse(root, "g0001", by="a", now=experiment.ends_at)
    params.write_text(text)
    assert check(root, "g0001", "a", experiment.started_at + DAY).result == "go_on"
    assert launch.start(root, by="ada").started_at == experiment.started_at  # still the same test


def test_logs_that_cannot_be_read_are_unknown(root: Path, experiment: Experiment) -> None:
    (root / "data/logs/stray.jsonl").write_text("{}")
    found = check(root, "g0001", "a", experiment.started_at + DAY)
    assert found.result == "unknown"
    assert "stray.jsonl is not where logs belong" in found.reasons[0]


def started_on_exports(root: Path) -> Experiment:
    """A test whose events are tables in a folder that is not there yet."""
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("events: logs", "events: exports"))
    approve(root)
    run_launch(root)
    return launch.start(root, by="ada")


def test_exports_that_are_not_there_yet_are_unknown_and_waited_for(root: Path) -> None:
    started = started_on_exports(root)
    found = check(root, "g0001", "a", started.started_at + DAY)
    assert (found.result, registry_of(root).state().running().checks) == ("unknown", (found,))
    assert found.reasons[0].startswith("ab.events: exports cannot be read")
    assert watch(root, "g0001", "a", started.ends_at).until == started.ends_at + timedelta(hours=1)
    assert watch(root, "g0001", "a", started.ends_at + timedelta(hours=12)).until is None


def test_events_that_never_get_right_are_an_error_of_every_look(root: Path) -> None:
    """As `unknown` they would leave a whole test without guardrails."""
    started = started_on_exports(root)
    for name, columns in log_events.TABLES.items():
        (root / "exports" / name).mkdir(parents=True)
        empty = pa.table({column: pa.array([], "string") for column in columns if column != "signal"})
        pq.write_table(empty, root / "exports" / name / "part-0.parquet")
    for moment in (started.started_at + DAY, started.ends_at):
        with pytest.raises(EventsError, match="table signals lacks the columns signal") as found:
            watch(root, "g0001", "a", moment)
        assert not isinstance(found.value, UnreachableEventsError)
    assert registry_of(root).state().running().checks == ()


def test_a_test_does_not_start_on_events_that_never_get_right(root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("events: logs", "events: nowhere://there"))
    approve(root)
    run_launch(root)
    with pytest.raises(
        launch.LaunchError, match=r"does not start: ab\.events: nowhere://there cannot be read: ValueError"
    ):
        launch.start(root, by="ada")
    assert registry_of(root).state().running() is None


def test_a_test_that_a_person_stopped_is_over(root: Path, experiment: Experiment) -> None:
    promotion.rollback(root, "g0001", "complaints", by="ada")
    assert watch(root, "g0001", "a").stopped == "complaints"
    with pytest.raises(RegistryError, match="there is no experiment of generation g0002"):
        watch(root, "g0002", "a")


def test_days_without_logs_are_no_fault_of_simulated_users(root: Path) -> None:
    """As to the analysis: the simulation writes all days on which its users do something."""
    generator = np.random.default_rng(3)
    arm, users = people.drawn(generator, 2_000, days=5)
    found, rule = people.population(arm, users, days=5), SEEN
    for gap in ({}, {"control": found.by_day[2]["control"]}):
        days = [*found.by_day]
        days[2] = {"control": DayLogs(), "candidate": DayLogs()} | gap
        lost, plan = replace(found, by_day=tuple(days)), people.make_plan(rule=rule)
        assert look_document(plan, lost, simulated=True)["result"] == "go_on"
        assert look_document(plan, lost)["result"] == "unknown"


def test_simulated_users_are_not_waited_for(root: Path) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("planned_users: 10000", "planned_users: 200"))
    approve(root)
    run_launch(root)
    started = launch.start(root, by="ada")
    write_days(root, started, [0, 2])
    assert watch(root, "g0001", "a", started.ends_at).until is None


def test_few_users_stop_nothing() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 30, lift=-0.99)
    assert look_document(people.make_plan(), people.population(arm, users))["result"] == "unknown"
    assert look_document(people.make_plan(), None)["reasons"] == ["nobody was exposed"]


SEEN = people.RULE.model_copy(update={"guardrails": ("thumb_down_per_reply", "latency_ms")})
GIVEN = ("thumb_up", "thumb_down", "love", "regenerate", "report")


@pytest.mark.parametrize(
    ("lost", "of", "why"),
    [
        (GIVEN, "both", "thumb_down_per_reply cannot be told: no signal of any kind in either arm"),
        (
            ("replies",),
            "both",
            "thumb_down_per_reply cannot be told: no replies in arm control and candidate",
        ),
        (("replies",), "candidate", "thumb_down_per_reply cannot be told: no replies in arm candidate"),
        (
            ("timed_replies",),
            "control",
            "latency_ms cannot be told: no replies with a latency in arm control",
        ),
        (("milliseconds",), "both", "latency_ms cannot be told: milliseconds is zero for everyone"),
    ],
)
def test_a_guardrail_that_the_logs_cannot_measure_does_not_pass(
    lost: tuple[str, ...], of: str, why: str
) -> None:
    """An export without signals, or with other names for them, has no thumb down: that is not praise."""
    arm, users = people.drawn(np.random.default_rng(3), 2_000, lift=0.4)
    gone = {name: np.where((arm == of) | (of == "both"), 0, users[name]) for name in lost}
    found, plan = people.population(arm, users, changes=gone), people.make_plan(rule=SEEN)
    look = look_document(plan, found)
    assert (look["result"], look["reasons"]) == ("unknown", [why])
    document = analyse_population(plan, found, simulated=False)
    assert (document["result"], document["reasons"], document["advice"]) == ("invalid", [why], None)


def test_a_signal_that_nobody_gave_is_rare_where_others_were_given() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 2_000)
    found = people.population(arm, users, changes={"thumb_down": 0 * users["thumb_down"]})
    assert look_document(people.make_plan(rule=SEEN), found)["result"] == "go_on"
    # Who watches no signal needs none.
    quiet = people.population(arm, users, changes={name: 0 * users[name] for name in GIVEN})
    rule = SEEN.model_copy(update={"guardrails": ("safety_violation_per_reply", "latency_ms")})
    assert look_document(people.make_plan(rule=rule), quiet)["result"] == "go_on"


def test_guardrails_spend_their_own_level() -> None:
    arm, users = people.drawn(np.random.default_rng(3), 2_000)
    more = (arm == "candidate") & (np.arange(2_000) % 10 == 0)
    worse = people.population(arm, users, changes={"thumb_down": users["thumb_down"] + more})
    rule = people.RULE.model_copy(update={"guardrail_alpha": 1e-12})
    assert look_document(people.make_plan(), worse)["result"] == "stop"
    assert look_document(people.make_plan(rule=rule), worse)["result"] == "go_on"
