"""Conversations that go on from before the newest days."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts.quarantine import write_kept
from flywheel_tasks.contracts.resumed import beginnings
from flywheel_tasks.contracts.sql import Cleared
from flywheel_tasks.contracts.validate import run
from flywheel_tasks.conversations.assemble import assemble
from flywheel_tasks.settings import Assemble
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic.schemas import MESSAGES
from tests.contracts.test_validate import prepare
from tests.curation.rows import message as row
from tests.traffic.sample import Event, card, message, signal

LONG = {"conversation_id": "long", "user_id": "u5"}


def validated(root: Path, make_io, log: list[Event], *, earlier: bool):
    """Metrics of the stage, and the rule by event of what it set aside."""
    stage_io = prepare(root, make_io, log)
    logs = root / "inputs/logs.json"
    write_json({**read_json(logs), "earlier": earlier}, logs)
    metrics = run(stage_io)
    out = stage_io.out("data/validated")
    return metrics, {item["event_id"]: item["rule"] for item in read_rows(out / "quarantine.parquet")}, out


def going_on(first: str) -> list[Event]:
    """The end of a conversation whose beginning is not there, with a signal on its last reply."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    said = [message(20 + n, roles[n % 2], 19 + n, **LONG) for n in range(4)]
    return [card(), *said, signal(1, 23 if first == "user" else 22, **LONG)]


@pytest.mark.parametrize("first", ["user", "assistant"])
def test_a_conversation_from_before_the_newest_days_begins_with_what_is_there(tmp_path, make_io, first):
    metrics, quarantined, out = validated(tmp_path, make_io, going_on(first), earlier=True)
    assert quarantined == {}
    assert metrics["resumed_conversations"] == 1
    settings_ = Assemble(continue_window_minutes=30, max_history_messages=16)
    made = assemble(out, tmp_path / "made", settings_, tmp_path / "scratch")
    assert made["problems"]["total"] == 0
    prompts = read_rows(tmp_path / "made/prompts.parquet")
    last = prompts[-1]
    assert [turn["content"] for turn in last["history"]] == [
        item["text"] for item in going_on(first) if item["type"] == "message"
    ][: len(last["history"])]
    assert [prompt["turn"] for prompt in prompts] == [1, 2]


def test_where_all_logs_are_read_a_missing_parent_stays_one(tmp_path, make_io):
    log = [*going_on("user"), message(1, "user", None), message(2, "assistant", 1)]
    metrics, quarantined, _ = validated(tmp_path, make_io, log, earlier=False)
    assert sorted(quarantined.values()) == ["missing_message", *["missing_parent"] * 4]
    assert metrics["resumed_conversations"] == 0


def test_what_else_is_missing_stays_missing(tmp_path, make_io):
    """A hole behind the beginning, in a conversation from before and in one of these days."""
    log = [
        *going_on("user"),
        message(30, "user", 29, **LONG, time="2026-11-02T11:00:00Z"),
        message(1, "user", None),
        message(3, "user", 2),
    ]
    metrics, quarantined, _ = validated(tmp_path, make_io, log, earlier=True)
    assert quarantined == {"e-m30": "missing_parent", "e-m3": "missing_parent"}
    assert metrics["resumed_conversations"] == 1


def test_a_parent_that_is_in_another_conversation_is_no_beginning(tmp_path, make_io):
    log = [card(), message(1, "user", None), message(2, "assistant", 1), message(3, "user", 2, **LONG)]
    metrics, quarantined, _ = validated(tmp_path, make_io, log, earlier=True)
    assert quarantined == {"e-m3": "parent_in_other_conversation"}
    assert metrics["resumed_conversations"] == 0


def test_a_character_may_speak_first(tmp_path, make_io):
    log = [card(), message(1, "assistant", None), message(2, "user", 1), message(3, "assistant", 2)]
    _, quarantined, out = validated(tmp_path, make_io, log, earlier=False)
    assert quarantined == {}
    settings_ = Assemble(continue_window_minutes=30, max_history_messages=16)
    assemble(out, tmp_path / "made", settings_, tmp_path / "scratch")
    (prompt,) = read_rows(tmp_path / "made/prompts.parquet")
    assert [turn["role"] for turn in prompt["history"]] == ["assistant", "user"]
    assert prompt["turn"] == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    cut=st.integers(0, 12),
)
def test_wherever_a_log_of_straight_conversations_is_cut_all_that_is_left_has_a_beginning(
    tmp_path, lengths, cut
):
    log = [
        row(f"c{of}", n, "assistant" if n % 2 else "user", "x", n - 1 if n else None, minutes=n)
        for of, length in enumerate(lengths)
        for n in range(length)
    ]
    left = [item for item in log if int(item["message_id"].rsplit("-", 1)[1]) >= cut]
    path = tmp_path / "messages.parquet"
    left.sort(key=lambda item: (item["time"], item["message_id"]))
    write_rows(left, MESSAGES, path)
    first, conversations = beginnings(path, tmp_path / "scratch", 256)
    kept = tmp_path / "kept.parquet"
    write_kept(path, np.ones(len(left), bool), kept, Cleared("parent_id", first))
    rows = read_rows(kept)
    assert [item["event_id"] for item in rows] == [item["event_id"] for item in left]
    ids = {item["message_id"] for item in rows}
    assert all(item["parent_id"] is None or item["parent_id"] in ids for item in rows)
    assert sum(item["parent_id"] is None for item in rows) == len({item["conversation_id"] for item in rows})
    assert conversations == (len({item["conversation_id"] for item in left}) if cut else 0)
