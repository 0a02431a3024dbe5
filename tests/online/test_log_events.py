"""The same test read from raw logs, from Parquet tables and from a warehouse gives the same figures."""

import os
import sqlite3
import zlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.online import event_trial, launch, log_events
from flywheel_tasks.online.analysis import analyse, analyse_population, look_at
from flywheel_tasks.online.analysis_text import analysis_markdown
from flywheel_tasks.online.checks import exposure_faults
from flywheel_tasks.online.days import DayLogs
from flywheel_tasks.online.event_errors import EventsError, UnreachableEventsError, readable
from flywheel_tasks.online.event_source import of_simulated_users
from flywheel_tasks.online.exposed import PopulationError, Window, population
from flywheel_tasks.online.guardrails import check, look_document
from flywheel_tasks.online.log_events import open_events
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.urls import told
from flywheel_tasks.traffic.events import parse_event
from tests.dags.small import ab_events, write_logs
from tests.online.conftest import approve
from tests.online.people import START, make_plan
from tests.online.spooled import spooled
from tests.online.test_launch import run_launch

PLAN = make_plan()
WINDOW = Window(START, START + timedelta(days=1))


def settings_of(root: Path, **changes: object) -> Settings:
    settings = load_settings(root / "params.yaml")
    return settings.model_copy(update={"ab": settings.ab.model_copy(update=changes)})


def figures(root: Path, segments: tuple[str, ...] = (), **changes: object) -> dict:
    with open_events(settings_of(root, **changes), root, PLAN) as events:
        made = population(events, WINDOW, PLAN.rule, segments)
        found = analyse_population(PLAN, made, simulated=False, segments=segments)
    return {key: value for key, value in found.items() if key != "logs"}


def write_tables(folder: Path, events: list[dict]) -> None:
    """The events as ingested tables, ids already hashed, with latencies and a column of the team's own."""
    tables: dict[str, list[dict]] = {"exposure": [], "message": [], "signal": []}
    for event in events:
        row = parse_event(event).row
        if event["type"] == "message":
            row["latency_ms"] = event.get("latency_ms")
        tables[event["type"]].append(row | {"user_id": f"u_{zlib.crc32(row['user_id'].encode()):08x}"})
    for row in tables["exposure"]:
        row["country"] = "de" if int(row["user_id"][-1], 16) % 2 else "fr"
    for name, rows in tables.items():
        (folder / f"{name}s").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}s/part-0.parquet")


@pytest.fixture
def events(root: Path) -> list[dict]:
    found = ab_events(PLAN.model_dump(mode="json"), 200)
    write_logs(root, "date=2026-11-09", found)
    return found


def test_parquet_and_a_warehouse_give_what_the_raw_logs_give(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    raw = figures(root)
    assert raw["result"] == "valid", raw["reasons"]
    assert figures(root, events="tables") == raw
    house = root / "house.duckdb"
    with duckdb.connect(str(house)) as con:
        for name in ("exposures", "messages", "signals"):
            con.execute(f"create table {name} as from '{root}/tables/{name}/*.parquet'")
    for options in ("", "?read_only=True"):
        assert figures(root, events=f"duckdb://{house}{options}") == raw
    with duckdb.connect(str(house)) as con:  # it is the team's: nothing stays there
        found = {row[0] for row in con.execute("select table_name from duckdb_tables()").fetchall()}
    assert found == {"exposures", "messages", "signals"}


@pytest.mark.parametrize("kind", ["BIGINT", "UUID"])
def test_a_user_is_the_same_whatever_type_a_tables_ids_have(
    root: Path, events: list[dict], kind: str
) -> None:
    """DuckDB hashes 12 and '12' differently: no signal found its user, and every guardrail on signals passed."""
    write_tables(root / "tables", events)
    raw = figures(root)
    number = f"('0x' || user_id[3:])::{kind}" if kind == "BIGINT" else "md5(user_id)::UUID"
    with duckdb.connect() as con:
        for name in ("exposures", "messages", "signals"):
            path = root / f"tables/{name}/part-0.parquet"
            ids = f"({number})::VARCHAR" if name == "exposures" else number
            con.execute(f"create table {name} as select * replace ({ids} as user_id) from '{path}'")
            con.execute(f"copy {name} to '{path}'")
    assert figures(root, events="tables") == raw


@pytest.mark.parametrize(
    ("place", "said", "kind"),
    [
        ("exports", "ab.events: exports cannot be read: IOException", UnreachableEventsError),
        (
            "duckdb://ada:secret@{root}/none/house.duckdb",
            "/none/house.duckdb cannot be read",
            UnreachableEventsError,
        ),
        (
            "duckdb://{root}/house.duckdb",
            "house.duckdb cannot be read: TableNotFound",
            UnreachableEventsError,
        ),
        ("nowhere://ada:secret@there", "ab.events: there cannot be read: ValueError", EventsError),
    ],
)
def test_events_that_are_not_there_are_one_error(
    root: Path, place: str, said: str, kind: type[EventsError]
) -> None:
    duckdb.connect(str(root / "house.duckdb")).close()
    with pytest.raises(EventsError) as found:
        figures(root, events=place.format(root=root))
    assert type(found.value) is kind
    assert said in str(found.value)
    assert "secret" not in str(found.value)
    assert "\n" not in str(found.value)


class OperationalError(Exception):
    """What a driver calls its errors of a server."""


class DataError(Exception):
    """What a driver calls its errors of a value."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OperationalError("could not connect to server: Connection refused"), UnreachableEventsError),
        (ConnectionResetError("by peer"), UnreachableEventsError),
        (OperationalError("FATAL: password authentication failed for user ada"), EventsError),
        (OperationalError("(1045, Access denied for user ada)"), EventsError),
        (ImportError("No module named psycopg"), EventsError),
        (DataError("invalid input: call me on 555-0100"), EventsError),
    ],
)
def test_only_what_time_may_mend_is_unreachable(error: Exception, kind: type[EventsError]) -> None:
    with pytest.raises(EventsError) as found, readable("postgres://there/db"):
        raise error
    assert type(found.value) is kind
    assert "555" not in str(found.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), TypeError("x"), KeyError("x"), AssertionError("x"), PopulationError("x")]
)
def test_what_is_wrong_with_the_one_who_asks_is_no_error_of_the_events(
    root: Path, events: list[dict], error: BaseException
) -> None:
    write_tables(root / "tables", events)
    settings = settings_of(root, events="tables")
    with pytest.raises(type(error)) as found, open_events(settings, root, PLAN):
        raise error
    assert found.value is error


def test_an_error_of_the_database_in_a_query_is_one_error(root: Path) -> None:
    """ibis asks a warehouse only when a result is wanted, and each has errors of its own."""
    house = root / "house.db"
    with sqlite3.connect(house) as con:
        for name, columns in log_events.TABLES.items():
            columns = (*columns, "latency_ms")
            con.execute(f"create table {name} ({', '.join(f'{column} text' for column in columns)})")
    settings = settings_of(root, events=f"sqlite://{house}")
    with pytest.raises(EventsError, match=r"house\.db cannot be read: OperationNotDefinedError"):
        figures(root, events=settings.ab.events)
    with pytest.raises(EventsError, match="OperationNotDefinedError"):  # before the start, too
        event_trial.try_events(settings, root, PLAN)
    with (
        pytest.raises(UnreachableEventsError, match="database is locked"),
        open_events(settings, root, PLAN),
    ):
        raise sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("place", "said", "shown"),
    [
        ("postgres://u:p%40ss@db/x", "cannot log in with p@ss", "cannot log in with ***"),
        ("postgres://u:p%40ss@db/x", "password=p%40ss, again p@ss", "password=***, again ***"),
        ("postgres://u:p@db/x", "permission denied, password p", "permission denied, password ***"),
        ("postgres://db/x?password=a+b&sslmode=require", "no 'a b' at db", "no '***' at db"),
        ("postgres://u:p@db/x", "postgres://u:p@db/x is down", "db/x is down"),
    ],
)
def test_no_error_tells_a_password(place: str, said: str, shown: str) -> None:
    assert told(OSError(f"{said}\nmore"), place) == shown


def test_a_value_that_cannot_be_read_is_not_told(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    path = root / "tables/messages/part-0.parquet"
    table = pq.read_table(path)
    times = pa.array(["call me on 555-0100"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("time"), "time", times), path)
    with pytest.raises(EventsError, match="a value is not what its column should have") as found:
        figures(root, events="tables")
    assert "555" not in str(found.value)


def test_a_warehouse_has_the_tests_own_days_whatever_the_logs_are(root: Path, events: list[dict]) -> None:
    """The shipped settings say simulated logs; a test that is judged by other events still ends when it ends."""
    settings = settings_of(root, events="tables")
    assert settings.logs.source == "simulated"
    assert not of_simulated_users(settings)
    assert of_simulated_users(settings_of(root))
    write_tables(root / "tables", events)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("events: logs", "events: tables"))
    approve(root)
    run_launch(root)
    started = launch.start(root, by="ada")
    with look_at(root, load_settings(params), started, started.started_at + timedelta(days=1)) as look:
        assert not look.over
        assert look.ends_at == started.ends_at


def test_a_column_of_the_exposures_is_a_segment(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    found = figures(root, ("country",), events="tables")
    rows = [row for row in found["segments"] if row["segment"] == "country"]
    assert {(row["value"], row["metric"]) for row in rows} == {
        (country, metric) for country in ("de", "fr") for metric in ("breadth", "depth")
    }
    assert sum(row["lift_percent"]["n"] for row in rows if row["metric"] == "depth") == sum(
        found["users"].values()
    )
    with pytest.raises(PopulationError, match="no column planet"):
        figures(root, ("planet",), events="tables")


def test_a_segment_that_is_not_there_starts_no_test_and_keeps_no_look_from_being_taken(
    root: Path, events: list[dict]
) -> None:
    """Where the tables come later, only the analysis at the end needs it, and there it can still be put right."""
    write_tables(root / "later", events)
    (root / "tables").symlink_to(root / "later")
    params = root / "params.yaml"
    params.write_text(
        params.read_text()
        .replace("events: logs", "events: tables")
        .replace("segments: []", "segments: [planet]")
    )
    approve(root)
    run_launch(root)
    with pytest.raises(launch.LaunchError, match=r"exposures has no column planet; it has.*: .*country"):
        launch.start(root, by="ada")
    (root / "tables").unlink()
    started = launch.start(root, by="ada")
    (root / "tables").symlink_to(root / "later")
    assert check(root, "g0001", "ada", started.started_at + timedelta(hours=1)).reasons != ()
    with pytest.raises(PopulationError, match="no column planet"):
        analyse(root, "g0001", by="ada", now=started.ends_at)


def test_a_table_without_a_column_is_named(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    path = root / "tables/signals/part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["signal"]), path)
    with pytest.raises(EventsError, match="table signals lacks the columns signal"):
        figures(root, events="tables")


def changed(path: Path, columns: str) -> None:
    """Replace columns of a table by expressions of SQL."""
    with duckdb.connect() as con:
        con.execute(f"create table changed as select * replace ({columns}) from '{path}'")
        con.execute(f"copy changed to '{path}'")


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("upper(role[1]) || role[2:]", r"role is 'Assistant' \(\d+ rows\), 'User' \(\d+ rows\)"),
        (
            "if(role = 'assistant', 'bot', role)",
            r"role is 'bot' \(\d+ rows\); it must be one of user, assistant,",
        ),
        ("nullif(role, 'user')", r"role is null \(\d+ rows\)"),
        ("'call me on 555-0100'", r"role is a value that is no name \(\d+ rows\)"),
    ],
)
def test_a_role_that_nobody_knows_is_an_error_and_no_message_of_a_user(
    root: Path, events: list[dict], role: str, said: str
) -> None:
    """Every reply of a bot would be something that its user wrote: depth would be that of the arm's talkativeness."""
    write_tables(root / "tables", events)
    changed(root / "tables/messages/part-0.parquet", f"{role} as role")
    with pytest.raises(EventsError, match=said) as found:
        figures(root, events="tables")
    assert "555" not in str(found.value)
    with pytest.raises(EventsError, match=said):
        event_trial.try_events(settings_of(root, events="tables"), root, PLAN)


def test_messages_of_systems_and_tools_are_no_messages_of_users(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    before = figures(root, events="tables")
    path = root / "tables/messages/part-0.parquet"
    said = [row for row in pq.read_table(path).to_pylist() if row["role"] == "user"]
    rows = [row | {"role": "system"} for row in said] + [row | {"role": "tool"} for row in said[:7]]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path.with_name("part-1.parquet"))
    assert figures(root, events="tables") == before
    with open_events(settings_of(root, events="tables"), root, PLAN) as found:
        made = analyse_population(PLAN, population(found, WINDOW, PLAN.rule), simulated=False)
    assert made["logs"]["ignored_messages"] == {"system": len(said), "tool": 7}
    assert f"Left out: {len(said)} messages of role system, 7 messages of role tool." in analysis_markdown(
        made
    )


def test_another_spelling_of_a_signal_is_an_error(root: Path, events: list[dict]) -> None:
    """It would be no signal at all, and its guardrail would pass."""
    write_tables(root / "tables", events)
    path = root / "tables/signals/part-0.parquet"
    changed(path, "'Thumbs-Down' as signal")
    with pytest.raises(EventsError, match="signal is 'Thumbs-Down'; it must be written thumb_down"):
        figures(root, events="tables")
    changed(path, "'shared' as signal")  # a team's own
    assert figures(root, events="tables")["metrics"]["thumb_up_per_reply"]["absent"] is not None


def test_an_exposure_to_no_arm_does_not_vanish(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    few = "user_id in (select distinct user_id from '{0}' order by 1 limit 5)".format
    path = root / "tables/exposures/part-0.parquet"
    changed(path, f"if({few(path)}, null, arm) as arm")
    assert figures(root, events="tables")["reasons"] == ["5 users were exposed to an arm that has no name"]
    # Half of their exposures say it: then they saw two.
    with duckdb.connect() as con:
        con.execute(f"create table more as from '{path}' where arm is null")
        con.execute("update more set arm = 'control'")
        con.execute(f"copy more to '{path.with_name('part-1.parquet')}'")
    assert "5 users were exposed to more than one arm" in figures(root, events="tables")["reasons"]


def test_a_few_exposures_of_nobody_or_those_of_other_days_and_sources_are_no_fault(
    root: Path, events: list[dict]
) -> None:
    """One of 300 made a whole small test invalid."""
    write_tables(root / "tables", events)
    before = figures(root, events="tables")
    assert before["result"] == "valid"
    path = root / "tables/exposures/part-0.parquet"
    with duckdb.connect() as con:
        con.execute(f"create table lost as select * replace (null as user_id) from '{path}' limit 10")
        con.execute("insert into lost select * replace (time - interval 9 day as time) from lost")
        con.execute("insert into lost select * replace ('internal' as source) from lost")
        con.execute(f"copy lost to '{path.with_name('part-1.parquet')}'")
    days = (START.date(), START.date())
    with open_events(settings_of(root, events="tables"), root, PLAN, days=days) as found:
        assert found.description["exposures_without"] == {"user_id": 10}
        made = population(found, WINDOW, PLAN.rule)
        document = analyse_population(PLAN, made, simulated=False)
    assert {key: value for key, value in document.items() if key != "logs"} == before


@pytest.mark.parametrize("nobody", [None, ""])
def test_rows_of_nobody_are_not_those_of_one_busy_user(
    root: Path, events: list[dict], nobody: str | None
) -> None:
    """All of them would be one user who saw both arms, and one is enough to make a test invalid."""
    write_tables(root / "tables", events)
    before = figures(root, events="tables")
    for name, rows in (("exposures", 11), ("messages", 9), ("signals", 4)):
        path = root / f"tables/{name}/part-0.parquet"
        lost = pq.read_table(path).slice(0, rows)
        gone = pa.array([nobody] * rows, pa.string())
        lost = lost.set_column(lost.column_names.index("user_id"), "user_id", gone)
        pq.write_table(lost, path.with_name("part-1.parquet"))
    after = figures(root, events="tables")
    reason = "11 exposures have no user_id, and count for nobody"
    assert (after["result"], after["reasons"]) == ("invalid", [reason])
    assert {**after, "result": "valid", "reasons": []} == {**before, "advice": None} | {
        key: after[key] for key in ("advice_reasons", "primary_pvalues")
    }
    with open_events(settings_of(root, events="tables"), root, PLAN) as found:
        made = population(found, WINDOW, PLAN.rule)
        said = analysis_markdown(analyse_population(PLAN, made, simulated=False))
        assert "11 exposures without user_id, 9 messages without user_id, 4 signals without user_id." in said
        # Of thousands of exposures eleven are a trace, which is told and no more.
        many = replace(made, by_day=({"control": DayLogs(exposures=20_000)},))
        assert exposure_faults(many, PLAN) == []


def test_only_the_tables_of_the_tests_days_are_checked(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    changed(
        root / "tables/messages/part-0.parquet",
        f"if(time < timestamptz '{START:%Y-%m-%d} 09:02:00+00', 'bot', role) as role",
    )
    settings = settings_of(root, events="tables")
    later = (START + timedelta(days=2)).date()
    with open_events(settings, root, PLAN, (), (later, later)) as found:
        assert found.description["ignored_messages"] == {}
    with (
        pytest.raises(EventsError, match="role is 'bot'"),
        open_events(settings, root, PLAN, (), (START.date(), later)),
    ):
        pass


def test_a_latency_that_no_table_has_is_no_guardrail(root: Path, events: list[dict]) -> None:
    """A whole test without this guardrail would be a test that no slow candidate fails."""
    write_tables(root / "tables", events)
    path = root / "tables/messages/part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["latency_ms"]), path)
    settings = settings_of(root, events="tables")
    with pytest.raises(EventsError, match="table messages lacks the column latency_ms, which is a guardrail"):
        figures(root, events="tables")
    with pytest.raises(EventsError, match="lacks the column latency_ms"):  # before the start, too
        event_trial.try_events(settings, root, PLAN)
    rule = PLAN.rule.model_copy(update={"guardrails": ("thumb_down_per_reply",)})
    with open_events(settings, root, make_plan(rule=rule)) as found:
        assert "milliseconds" in found.activity.columns


def test_latency_and_refused_replies_of_the_gateway_count(root: Path, events: list[dict]) -> None:
    replies = [event for event in events if event.get("role") == "assistant"]
    for number, event in enumerate(replies):
        event["latency_ms"] = 100.4 + number % 3
    replies[0] |= {"model": None, "parent_id": "asked", "refused_model": "g0001"}
    replies[1]["latency_ms"] = "fast"  # not what it should be: not counted
    write_logs(root, "date=2026-11-09", events)
    found = figures(root)["metrics"]
    assert 100 <= found["latency_ms"]["control"] <= 102
    assert found["safety_violation_per_reply"]["absent"] is None
    assert found["report_per_reply"]["absent"] == "no report in the logs"


def test_a_reply_that_was_cut_short_is_a_reply_and_a_violation(events: list[dict]) -> None:
    cut = next(event for event in events if event.get("role") == "assistant") | {"refused_model": "g0001"}
    assert cut["model"] is not None  # what was shown before is the model's
    reader, (reply, violation) = spooled([cut], PLAN)
    assert (reply["kind"], violation["kind"]) == ("reply", "safety_violation")
    assert (violation["user"], violation["time"]) == (reply["user"], reply["time"])
    assert (violation["event"] == reply["event"], reader.counts()["unreadable"]) == (False, 0)


def test_a_greeting_is_no_reply_of_an_arm(root: Path, events: list[dict]) -> None:
    before = figures(root)
    said = [event for event in events if event.get("role") == "user"]
    greetings = [
        event
        | {"role": "assistant", "model": None, "parent_id": None}
        | {name: f"greeting-{event[name]}" for name in ("event_id", "message_id")}
        for event in said
    ]
    write_logs(root, "date=2026-11-09", events + greetings)
    after = figures(root)
    assert len(greetings) > 100
    assert after["metrics"] == before["metrics"]
    write_tables(root / "tables", events + greetings)
    assert figures(root, events="tables")["metrics"] == before["metrics"]


@pytest.mark.parametrize(("reason", "kinds"), [("failed", 2), ("not_ready", 2), ("loading", 1), (7, 1)])
def test_a_champions_reply_in_place_of_a_failed_one_is_a_fallback(
    events: list[dict], reason: object, kinds: int
) -> None:
    """Neither its latency nor its violation is the arm's."""
    more = {"fallback": reason, "latency_ms": 100, "refused_model": "base"}
    stood_in = next(event for event in events if event.get("role") == "assistant") | more
    if reason == 7:  # not what it should be
        del stood_in["refused_model"]
    _, found = spooled([stood_in], PLAN)
    assert [row["kind"] for row in found] == ["reply", "fallback"][:kinds]
    assert len({row["event"] for row in found}) == kinds
    assert [row.get("milliseconds") for row in found] == [100 if reason == 7 else None, None][:kinds]


@pytest.mark.parametrize(("tolerated", "result"), [(0.01, "stop"), (0.5, "go_on")])
def test_a_candidate_that_fails_part_of_the_time_is_stopped(
    root: Path, events: list[dict], tolerated: float, result: str
) -> None:
    """Whoever the champion stood in for is as content as anyone: only the fallbacks tell."""
    arms = {event["user_id"]: event["arm"] for event in events if event["type"] == "exposure"}
    replies = [event for event in events if event.get("role") == "assistant"]
    for number, event in enumerate(replies):
        if arms[event["user_id"]] == "candidate" and number % 3 == 0:
            event |= {"fallback": "failed", "model": "base"}
    write_logs(root, "date=2026-11-09", events)
    settings = settings_of(root)
    assert "fallback_per_reply" in settings.ab.guardrails
    plan = make_plan(rule=settings.ab.rule.model_copy(update={"tolerated_fallback": tolerated}))
    with open_events(settings, root, plan) as found:
        look = look_document(plan, population(found, WINDOW, plan.rule))
    assert look["result"] == result, look
    if result == "go_on":
        return
    assert look["reasons"][0].startswith("Fallbacks to the champion per reply: worse than none")
    document = figures(root)["metrics"]["fallback_per_reply"]
    assert (document["control"], document["absent"]) == (0, None)
    assert 0.2 < document["candidate"] < 0.5


@pytest.mark.parametrize(("limit", "threads"), [("1500MB", 3), ("2 GiB", 4), ("300MB", 1), ("80%", 2)])
def test_an_analysis_takes_no_more_threads_than_its_memory_feeds(
    limit: str, threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a thread on each of sixteen cores and 1500 MB, 200 million events ended out of memory."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("FLYWHEEL_AB_MEMORY", limit)
    found = log_events.connect(tmp_path).raw_sql("SELECT current_setting('threads')").fetchone()
    assert found == (threads,)
