"""``flywheel contracts check`` on tables, folders and raw logs, as a stranger would call it."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.contracts.checking import read_reference
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.contracts.model import ContractError
from flywheel_tasks.contracts.schema import arrow_schema
from tests.conftest import PROJECT
from tests.traffic.sample import card, events, message, signal

CONTRACTS = load_contracts(PROJECT / "data_contracts")
LABEL = {"task_id": "t-1", "annotator": "ada", "simulated": False, "ranking": ["a", "b"], "answers": {}}


def check(*arguments: object):
    result = CliRunner().invoke(
        app,
        ["contracts", "check", *map(str, arguments), "--root", str(PROJECT)],
        env={"COLUMNS": "200"},
        catch_exceptions=True,
    )
    error = result.exception if not isinstance(result.exception, SystemExit) else None
    return result.exit_code, " ".join(result.output.split()), error


def write_jsonl(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path: Path, table: str, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(CONTRACTS[table])), path)
    return path


def test_a_sound_table_passes_and_rules_about_other_tables_say_that_they_are_not_here(tmp_path):
    path = write_jsonl(tmp_path / "labels.jsonl", [LABEL, {**LABEL, "annotator": "bob"}])
    code, text, _ = check(path)
    assert code == 0
    assert "labels 2 rows, 2 kept, 0 set aside" in text


def test_rows_and_lines_that_are_no_rows_are_named_by_file_and_line(tmp_path):
    rows = [LABEL, {**LABEL, "annotator": " "}, "{broken\n", {**LABEL, "annotator": "bob", "simulated": "no"}]
    path = write_jsonl(tmp_path / "somewhere.jsonl", rows)
    code, text, _ = check(path, "--table", "labels", "--html", tmp_path / "page.html")
    assert code == 1
    assert f"{path}:3: not JSON" in text
    assert f"{path}:4: simulated is 'no', no bool" in text
    assert f"{path}:2: blank_annotator: annotator is ' '" in text
    assert "BLOCKED: 75.0% of all rows are set aside, above the limit of 5.0%" in text
    assert "BLOCKED" in (tmp_path / "page.html").read_text()
    assert check(path, "--table", "labels", "--max-share", "0.8")[0] == 0


def test_the_detail_of_a_row_begins_with_its_values_and_says_the_rule_in_words(tmp_path):
    row = {"card_id": "a", "name": "Mira", "traits": [], "instructions": []}
    rows = [{**row, "name": " "}, {**row, "card_id": "b", "name": None}, {**row, "card_id": "c" * 500}]
    listed = tmp_path / "aside.jsonl"
    path = write_table(tmp_path / "cards.parquet", "card_sheets", [*rows, rows[2]])
    check(path, "--table", "card_sheets", "--quarantine", listed)
    details = [json.loads(line)["detail"] for line in listed.read_text().splitlines()]
    assert details == [
        "name is ' ': name must not be blank",
        "name is missing: name must have a value",
        *[f"card_id is '{'c' * 40}…': card_id must be in one row only"] * 2,
    ]


def test_a_table_is_known_by_its_columns(tmp_path):
    row = {"card_id": "a", "name": "Mira", "traits": [], "instructions": ["Be kind."]}
    path = write_table(tmp_path / "export.parquet", "card_sheets", [row, {**row, "card_id": "b"}])
    code, text, _ = check(path)
    assert code == 0
    assert "card_sheets 2 rows" in text


def test_tables_of_a_folder_are_checked_together(tmp_path):
    log = [*events(), signal(9, 99)]
    kinds = {"card": "cards", "message": "messages", "signal": "signals"}
    from flywheel_tasks.traffic.events import parse_event

    for kind, table in kinds.items():
        rows = [parse_event(event).row for event in log if event["type"] == kind]
        write_table(tmp_path / "tables" / f"{table}.parquet", table, rows)
    code, text, _ = check(tmp_path / "tables", "--max-share", "0.5")
    assert code == 0
    assert "missing_message: message_id m99 is not among messages.message_id" in text
    code, text, _ = check(tmp_path / "tables/signals.parquet")
    assert "not applicable: table messages is not here" in text
    assert code == 0


@pytest.mark.parametrize("shape", ["folder", "day", "file"])
def test_of_raw_logs_it_says_what_ingestion_would_make_of_them(tmp_path, shape):
    log = [*events(), card(event_id="e-c2", card_id="card-2", name=" "), "nonsense\n", message(9, "user", 77)]
    file = write_jsonl(tmp_path / "logs/date=2026-11-02/part.jsonl", log)
    path = {"folder": tmp_path / "logs", "day": file.parent, "file": file}[shape]
    code, text, error = check(path, "--max-share", "0.9")
    assert (code, error) == (0, None)
    assert "not_json" in text
    number = len(log)
    shown = "date=2026-11-02/part.jsonl" if shape == "folder" else str(file)
    assert f" {shown}:{number}: missing_parent: parent_id m77 is not among" in text
    assert f" {shown}:{number - 2}: blank_name" in text


@pytest.mark.parametrize("shape", ["folder", "file", "elsewhere.jsonl", "elsewhere.parquet"])
def test_raw_logs_without_an_event_say_which_lines_and_which_field(tmp_path, shape):
    log = [{**event, "timestamp": event["time"]} for event in events()]
    for event in log:
        del event["time"]
    file = write_jsonl(tmp_path / "logs/date=2026-11-02/part.jsonl", log)
    path = {"folder": tmp_path / "logs", "file": file}.get(shape, tmp_path / shape)
    if shape == "elsewhere.jsonl":
        write_jsonl(path, log)
    elif shape == "elsewhere.parquet":
        pq.write_table(pa.Table.from_pylist(log), path)
    code, text, error = check(path, "--quarantine", tmp_path / "refused.jsonl")
    assert (code, error) == (1, None)
    shown = "date=2026-11-02/part.jsonl" if shape == "folder" else path
    assert f"{shown}:1: missing_field: time absent from this card" in text
    assert f"BLOCKED: {path}: the logs hold no event: {len(log)} lines in 1 partitions" in text
    assert "set ingest.rename to {timestamp: time}" in text
    rows = [json.loads(row) for row in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [(str(shown), n + 1) for n in range(len(log))]
    assert {row["rule"] for row in rows} == {"missing_field"}


def test_a_field_under_another_name_in_some_events_is_told(tmp_path):
    log = [{**event, "ts": 1762077600} for event in events()]
    for event in log[2:]:
        del event["time"]
    path = write_jsonl(tmp_path / "export.jsonl", log)
    code, text, _ = check(path)
    assert code == 1
    assert "there is no field time in events of type message (100%), signal (100%), but ts" in text
    assert "as a string, for ts is a number" in text


def test_the_counts_of_ingestion_add_up_and_all_that_is_set_aside_can_be_written(tmp_path):
    odd = [message(20 + n, "user", 77) for n in range(8)]
    log = [*events(), events()[1], "nonsense\n", *odd]
    file = write_jsonl(tmp_path / "export.jsonl", log)
    listed = tmp_path / "aside.parquet"
    code, text, _ = check(file, "--quarantine", listed, "--max-share", "0.9")
    assert code == 0
    good = len(log) - 2
    assert f"Ingestion reads {len(log)} lines: {good} events, 1 refused, 1 repeated." in text
    rows = pq.read_table(listed).to_pylist()
    assert [row["rule"] for row in rows] == ["not_json", *["missing_parent"] * len(odd)]
    assert [row["line"] for row in rows] == [len(events()) + 2, *range(len(events()) + 3, len(log) + 1)]
    assert {row["file"] for row in rows} == {str(file)}
    path = write_jsonl(tmp_path / "labels.jsonl", [LABEL, {**LABEL, "annotator": " "}, "{broken\n"])
    check(path, "--quarantine", listed)
    assert [(row["line"], row["rule"]) for row in pq.read_table(listed).to_pylist()] == [
        (3, "no_row"),
        (2, "blank_annotator"),
    ]
    _, _, error = check(path, "--quarantine", tmp_path / "aside.csv")
    assert "ends in .parquet or .jsonl" in str(error)


def test_a_raw_log_that_lies_anywhere_is_called_as_it_was_given(tmp_path):
    twice = card(name="Mira")
    log = [*events(), "nonsense\n", twice, {**twice, "name": "Another"}]
    file = write_jsonl(tmp_path / "export.jsonl", log)
    _, text, _ = check(file, "--max-share", "0.9")
    assert "1970" not in text
    assert f" {file}:{len(log) - 2}: not_json" in text
    assert f"has other content in {file} line" in text


def test_a_profile_of_one_is_what_the_next_is_compared_with(tmp_path):
    path = write_jsonl(tmp_path / "logs/date=2026-11-02/part.jsonl", events())
    profile = tmp_path / "profile.json"
    assert check(path, "--profile", profile)[0] == 0
    assert read_reference(profile)["tables"]["messages"]["rows"] == 5
    code, text, _ = check(path, "--against", profile)
    assert code == 0
    assert "not judged: 5 rows, the rule needs 1,000" in text
    with pytest.raises(ContractError, match=r"no profile of data"):
        read_reference(write_jsonl(tmp_path / "x.json", [{"a": 1}]))


def test_damaged_files_are_named_and_lines_that_fit_no_column_are_listed(tmp_path):
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in events() * 50).encode())
    for name, data in (("cut.jsonl.gz", packed[:-40]), ("none.jsonl.gz", b"not gzip at all")):
        (tmp_path / name).write_bytes(data)
        _, _, error = check(tmp_path / name, "--table", "messages")
        assert isinstance(error, ContractError)
        assert f"{tmp_path / name}: a damaged gzip file" in str(error)
    bad = [{"reviews": 2**63}, {"history": [{"role": 1, "content": "a"}]}, {"agreement": 2**64 - 1}]
    _, text, error = check(write_jsonl(tmp_path / "odd.jsonl", bad), "--table", "pairs", "--max-share", "1")
    assert not isinstance(error, pa.ArrowException | OverflowError)
    for number, column in enumerate(("reviews", "history", "agreement"), start=1):
        assert f"odd.jsonl:{number}: {column}: a value has not its column's type" in text
    for profile in ("missing.json", "odd.json"):
        (tmp_path / "odd.json").write_text('{"tables": {"messages": {"rows": "x"}}}')
        with pytest.raises(ContractError, match=profile):
            read_reference(tmp_path / profile)


def test_one_parquet_file_of_raw_logs_is_read_as_logs(tmp_path):
    rows = [row for row in events() if row["type"] == "message"]
    path = tmp_path / "logs/date=2026-11-02/message.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    _, text, error = check(path, "--max-share", "1")
    assert error is None or not isinstance(error, ContractError)
    assert "Ingestion reads" in text


def test_what_cannot_be_checked_is_said_in_words(tmp_path):
    _, _, error = check(tmp_path / "nowhere")
    assert "there is no such file or folder" in str(error)
    (tmp_path / "empty").mkdir()
    _, _, error = check(tmp_path / "empty")
    assert "holds no known table" in str(error)
    assert "pairs" in str(error)
    path = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    _, _, error = check(path)
    assert "has the columns or the name of no known table" in str(error)
    pq.write_table(pa.table({name: ["x"] for name in ("pair_id", "reason", "why")}), path)
    _, _, error = check(path)
    assert "it is most like removed_pairs, but lacks detail and has also why" in str(error)
    (tmp_path / "odd.csv").write_text("a,b")
    _, _, error = check(tmp_path / "odd.csv")
    assert "only .parquet, .jsonl, .jsonl.gz are read" in str(error)
    _, _, error = check(path, "--table", "nope")
    assert "there is no contract for table nope" in str(error)
    _, _, error = check(path, "--table", "labels")
    assert "breaks the rule columns: absent: annotator: string" in str(error)
    path.write_bytes(b"PAR1 not really")
    _, _, error = check(path)
    assert "not a Parquet file" in str(error)
    assert isinstance(error, ContractError)
    shutil.rmtree(tmp_path / "empty")


def test_a_part_of_the_logs_may_go_on_from_before_it(tmp_path):
    log = [
        *events(),
        *(message(n, "user" if n % 2 else "assistant", n - 1, conversation_id="c3") for n in range(7, 11)),
    ]
    file = write_jsonl(tmp_path / "logs/date=2026-11-02/part.jsonl", log)
    for path, lost in ((file, False), (file.parent, False), (tmp_path / "logs", True)):
        code, text, error = check(path, "--max-share", "0.9")
        assert (code, error) == (0, None)
        assert ("missing_parent" in text) is lost
