"""What the rows of a team's tables must say, and which of them count for nobody."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.online import event_trial
from flywheel_tasks.online.analysis import analyse_population
from flywheel_tasks.online.analysis_text import analysis_markdown
from flywheel_tasks.online.checks import exposure_faults
from flywheel_tasks.online.days import DayLogs
from flywheel_tasks.online.event_errors import EventsError
from flywheel_tasks.online.exposed import population
from flywheel_tasks.online.log_events import open_events
from tests.online.people import START, make_plan
from tests.online.tables import PLAN, WINDOW, changed, figures, settings_of, write_tables


def test_a_table_without_a_column_is_named(root: Path, events: list[dict]) -> None:
    write_tables(root / "tables", events)
    path = root / "tables/signals/part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["signal"]), path)
    with pytest.raises(EventsError, match="table signals lacks the columns signal"):
        figures(root, events="tables")


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
