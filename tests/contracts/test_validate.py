from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.validate import run
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, read_table, write_table
from flywheel_tasks.traffic.identity import DEMO_KEY, Identity, UserKey
from flywheel_tasks.traffic.lines import RawLine
from flywheel_tasks.traffic.schemas import TABLES, VALIDATION_QUARANTINE
from tests.traffic.line_by_line import Ingestion
from tests.traffic.sample import Event, card, events, line, message, signal

FILE = "date=2026-11-02/part-000.jsonl"


def prepare(root: Path, make_io, log: list[Event], broken: int = 0, limit: float = 1.0):
    """A workspace in which these events (and some broken lines) are ingested."""
    stage_io = make_io("validate", root, {"validate.max_quarantine_share": limit})
    ingestion = Ingestion(Identity(UserKey(DEMO_KEY), frozenset()))
    lines = [*map(line, log), *[b"nonsense"] * broken]
    for number, data in enumerate(lines, start=1):
        ingestion.take(FILE, RawLine(number, data))
    for name, table in ingestion.tables().items():
        write_table(table, root / "data/ingested" / f"{name}.parquet")
    write_json({"location": "data/logs", "partitions": [{"path": FILE}]}, root / "inputs/logs.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")
    return stage_io


def validate(root: Path, make_io, log: list[Event]):
    """Metrics and ``{event_id: rule}`` of the quarantine, after checking that all rows are accounted for."""
    stage_io = prepare(root, make_io, log)
    metrics = run(stage_io)
    out = stage_io.out("data/validated")
    quarantine = read_rows(out / "quarantine.parquet")
    assert read_table(out / "quarantine.parquet").schema.equals(VALIDATION_QUARANTINE)
    ids = [event["event_id"] for event in log]
    for row in quarantine:
        assert (row["file"], row["line"]) == (FILE, ids.index(row["event_id"]) + 1)
        assert row["detail"]
    kept = [row["event_id"] for table in TABLES for row in read_rows(out / f"{table}.parquet")]
    assert sorted(kept + [row["event_id"] for row in quarantine]) == sorted(ids)
    for table in TABLES:
        assert read_table(out / f"{table}.parquet").schema.equals(TABLES[table])
        counts = metrics[table]["quarantined"]
        assert counts["total"] == sum(n for rule, n in counts.items() if rule != "total")
        assert metrics[table]["passed"] + counts["total"] == metrics[table]["read"]
    return metrics, {row["event_id"]: row["rule"] for row in quarantine}


def second(number: int, role: str, parent: int | None, **changes) -> Event:
    """A message of a second conversation, of another user."""
    return message(number, role, parent, **{"conversation_id": "c2", "user_id": "u2", **changes})


def test_a_sound_log_passes_whole_and_is_reported(tmp_path, make_io):
    metrics, quarantined = validate(tmp_path, make_io, events())
    assert quarantined == {}
    assert metrics["quarantine_share"] == 0
    assert metrics["messages"] == {"read": 5, "passed": 5, "quarantined": {"total": 0}}
    assert metrics["table_rules"]["block"] == metrics["table_rules"]["warn"] == 0


def test_the_report_names_every_rule_and_what_came_of_it(tmp_path, make_io):
    stage_io = prepare(tmp_path, make_io, [*events(), message(9, "user", 5, text="  ")])
    run(stage_io)
    report = read_json(stage_io.out("data/validated") / "report.json")
    assert report["result"] == "pass"
    table = report["tables"]["messages"]
    rows = {item["rule"]: item for item in table["row_rules"]}
    assert (rows["blank_text"]["set_aside"], rows["null_text"]["set_aside"]) == (1, 0)
    assert (table["read"], table["kept"]) == (6, 5)
    rules = {item["rule"]: item for item in table["table_rules"]}
    assert (rules["has_messages"]["status"], rules["has_messages"]["observed"]) == ("pass", 5)
    assert rules["user_length_drift"]["status"] == "not_applicable"
    assert rules["user_length_drift"]["note"] == "not applicable: first generation"
    assert all(item["why"] for item in (*table["row_rules"], *table["table_rules"]))


def test_each_broken_row_goes_to_quarantine_under_the_rule_it_breaks(tmp_path, make_io):
    fine = [
        message(10, "assistant", 4, text=""),  # a blank reply is a fact about a policy
        card(event_id="e-c3", time="2026-11-03T00:00:00Z", name="Mira II", greeting="Come in!"),
        *(message(40 + n, "user" if n % 2 else "assistant", 39 + n if n else 4) for n in range(3)),
    ]
    broken = {
        "blank_text": [message(11, "user", 5, text=" \n")],
        "blank_name": [card(event_id="e-c2", card_id="card-2", name=" ")],
        "missing_card": [message(12, "user", 5, card_id="card-9", conversation_id="c9")],
        "missing_parent": [message(13, "user", 99)],
        "parent_in_other_conversation": [second(14, "user", 5)],
        "answers_same_role": [message(15, "user", 4)],
        "earlier_than_parent": [message(16, "user", 5, time="2026-11-02T09:59:00Z")],
        "no_first_message": [  # two that answer each other
            second(17, "user", 18, time="2026-11-02T10:18:00Z"),
            second(18, "assistant", 17),
        ],
        "reply_without_parent": [  # of a conversation that names no parents, nothing stays
            message(50 + n, "assistant" if n % 2 else "user", None, conversation_id="c6") for n in range(4)
        ],
        "repeated_message_id": [
            second(20, "user", None),
            second(20, "user", None, event_id="e-copy", text="said twice"),
        ],
        "missing_message": [signal(1, 99, event_id="e-s11")],
        "not_on_a_reply": [signal(2, 4, event_id="e-s12")],
        "other_conversation": [signal(3, 5, event_id="e-s13", user_id="u7")],
    }
    log = [*events(), *fine, *(event for rows in broken.values() for event in rows)]
    metrics, quarantined = validate(tmp_path, make_io, log)
    assert quarantined == {event["event_id"]: rule for rule, rows in broken.items() for event in rows}
    assert metrics["cards"]["quarantined"] == {"total": 1, "blank_name": 1}
    assert metrics["signals"]["passed"] == 2


def test_what_a_removed_row_leaves_alone_goes_too(tmp_path, make_io):
    """In one conversation a blank first message, in one two users, in one a card without a name."""
    third = {"conversation_id": "c3", "user_id": "u3"}
    log = [
        *events(),
        second(6, "user", None, text=""),
        second(7, "assistant", 6),
        second(8, "user", 7),
        second(9, "assistant", 8),
        signal(4, 9, conversation_id="c2", user_id="u2"),
        message(20, "user", None, **third),
        message(21, "assistant", 20, **third),
        message(22, "user", 21, **third | {"user_id": "u4"}),
        signal(5, 21, **third),
        card(event_id="e-c2", card_id="card-2", name=""),
        message(30, "user", None, conversation_id="c4", card_id="card-2"),
        message(31, "assistant", 30, conversation_id="c4", card_id="card-2"),
    ]
    metrics, quarantined = validate(tmp_path, make_io, log)
    assert quarantined == {
        "e-m6": "blank_text",
        "e-m7": "missing_parent",
        "e-m8": "missing_parent",
        "e-m9": "missing_parent",
        "e-s4": "missing_message",
        "e-m20": "several_users",
        "e-m21": "several_users",
        "e-m22": "several_users",
        "e-s5": "missing_message",
        "e-c2": "blank_name",
        "e-m30": "missing_card",
        "e-m31": "missing_card",
    }
    assert metrics["messages"]["quarantined"] == {
        "total": 9,
        "blank_text": 1,
        "missing_card": 2,
        "missing_parent": 3,
        "several_users": 3,
    }
    assert metrics["quarantine_share"] == 12 / 21


def test_table_rules_stop_the_stage_with_table_rule_and_value(tmp_path, make_io):
    card_and_question = [events()[0], events()[2]]
    with pytest.raises(
        ContractError, match=r"table messages breaks the rule both_roles .*observed 1, allowed at least 2"
    ):
        run(prepare(tmp_path, make_io, card_and_question))
    with pytest.raises(ContractError, match=r"table cards breaks the rule has_cards .*observed 0"):
        run(prepare(tmp_path, make_io, events()[1:2]))


def test_the_page_of_a_blocked_validation_is_kept_where_the_message_says(tmp_path, make_io):
    stage_io = prepare(tmp_path, make_io, [events()[0], events()[2]])
    with pytest.raises(ContractError) as caught:
        run(stage_io)
    page = Path(str(caught.value).rsplit("All results: ", 1)[1])
    assert page == tmp_path / ".flywheel/contracts/contracts.html"
    assert "both_roles" in page.read_text(encoding="utf-8")


def test_what_contracts_set_aside_outlives_a_blocked_validation_until_one_passes(tmp_path, make_io):
    log = [*events(), signal(9, 9)]
    with pytest.raises(ContractError) as caught:
        run(prepare(tmp_path, make_io, log, limit=0.01))
    kept = tmp_path / ".flywheel/contracts/quarantine.parquet"
    assert f"Rows that contracts set aside: {kept}" in str(caught.value)
    run(prepare(tmp_path, make_io, log))  # another attempt begins without the temporary files of the last one
    assert not kept.parent.exists()
    with pytest.raises(ContractError):
        run(prepare(tmp_path, make_io, log, limit=0.01))
    prepare(tmp_path, make_io, log)
    assert [(row["line"], row["rule"]) for row in read_rows(kept)] == [(len(log), "missing_message")]


def test_data_is_compared_with_the_profile_of_the_last_accepted_generation(tmp_path, make_io):
    """A contract that judges from the first row on: the same log passes, one of other texts does not."""
    first = prepare(tmp_path / "first", make_io, events())
    run(first)
    profile = read_json(first.out("data/validated") / "profile.json")
    log = [{**event, "text": "much longer " * 9} if "text" in event else event for event in events()]
    for name, now in (("same", events()), ("other", log)):
        stage_io = prepare(tmp_path / name, make_io, now)
        write_json({"generation": "g0001", "profile": profile}, tmp_path / name / "inputs/profile.json")
        path = tmp_path / name / "data_contracts/messages.yaml"
        contract = yaml.safe_load(path.read_text())
        for rule in contract["table_rules"]:
            rule["min_rows"] = 0
        path.write_text(yaml.safe_dump(contract))
        if name == "same":
            metrics = run(stage_io)
            assert metrics["observed"]["messages"]["user_length_break"] == 0
            assert metrics["table_rules"]["block"] == 0
            page = (stage_io.out("data/validated") / "contracts.html").read_text(encoding="utf-8")
            assert "compared with g0001, the last accepted generation" in page
        else:
            message = r"messages breaks the rule user_length_break .*observed 1, allowed at most 0\.5"
            with pytest.raises(ContractError, match=message):
                run(stage_io)


def test_too_much_quarantine_stops_the_stage_with_rules_and_examples(tmp_path, make_io):
    log = [*events(), signal(9, 9)]
    stage_io = prepare(tmp_path, make_io, log, broken=2, limit=0.2)
    with pytest.raises(ContractError) as caught:
        run(stage_io)
    text = str(caught.value)
    assert "25.0% of the log is quarantined" in text
    assert "2 lines by ingest" in text
    assert "signals.missing_message: 1" in text
    assert f"{FILE}:10: missing_message" in text
    assert "ingest.not_json: 2" in text
    assert f"{FILE}:11: not_json: " in text
    assert run(prepare(tmp_path, make_io, log, broken=2, limit=0.25))["quarantine_share"] == 0.25


def test_a_table_of_other_columns_or_types_is_refused(tmp_path, make_io):
    stage_io = prepare(tmp_path, make_io, events())
    path = tmp_path / "data/ingested/signals.parquet"
    table = read_table(path)
    write_table(table.set_column(7, "value", pa.array([1.0, None], pa.float64())), path)
    with pytest.raises(ContractError, match=r"signals breaks the rule columns: .*value: double"):
        run(stage_io)


def test_a_table_without_a_contract_is_refused(tmp_path, make_io):
    stage_io = prepare(tmp_path, make_io, events())
    (tmp_path / "data_contracts/exposures.yaml").unlink()
    with pytest.raises(ContractError, match="no contract for exposures"):
        run(stage_io)


def test_an_expectation_that_cannot_be_computed_is_an_error_not_a_pass(tmp_path, make_io):
    stage_io = prepare(tmp_path, make_io, events())
    path = tmp_path / "data_contracts/cards.yaml"
    contract = yaml.safe_load(path.read_text())
    contract["row_rules"].append(
        {
            "name": "name_is_large",
            "why": "-",
            "expectation": "expect_column_values_to_be_between",
            "kwargs": {"column": "traits", "min_value": 3},
        }
    )
    path.write_text(yaml.safe_dump(contract))
    with pytest.raises(ContractError, match=r"cards\.yaml: rule name_is_large cannot be computed"):
        run(stage_io)


def test_the_same_input_gives_the_same_bytes(tmp_path, make_io):
    results = []
    for name in ("one", "two"):
        stage_io = prepare(tmp_path / name, make_io, [*events(), signal(9, 9), message(8, "user", 9)])
        metrics = run(stage_io)
        files = sorted(stage_io.out("data/validated").iterdir())
        results.append((metrics, {path.name: path.read_bytes() for path in files}))
    assert results[0] == results[1]
