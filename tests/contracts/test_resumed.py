"""Conversations that go on from before the newest days."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.contracts.quarantine import write_kept
from flywheel_tasks.contracts.resumed import beginnings
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


def assembled(validated: Path, root: Path):
    """Metrics of the conversations of validated tables, which come to ``root/made``."""
    how = Assemble(continue_window_minutes=30, max_history_messages=16)
    return assemble(validated, root / "made", how, root / "scratch")


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
    assert assembled(out, tmp_path)["problems"]["total"] == 0
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
    assembled(out, tmp_path)
    (prompt,) = read_rows(tmp_path / "made/prompts.parquet")
    assert [turn["role"] for turn in prompt["history"]] == ["assistant", "user"]
    assert prompt["turn"] == 1


def from_before(*rows: Event) -> list[Event]:
    """Messages of one conversation, in their order, among those of another that is whole."""
    return [card(), message(1, "user", None), message(2, "assistant", 1), *({**row, **LONG} for row in rows)]


LATE = {"time": "2026-11-02T10:59:00Z"}


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        # Two turns after the same reply: the branch that was gone on with stays.
        ([(20, "user", 19), (21, "user", 19), (22, "assistant", 21)], {20}),
        # The earliest one is an edit of what is not there.
        ([(20, "user", 19, {"replaces": "m18"}), (21, "assistant", 20)], set()),
        # A reply from before is tried again twice.
        ([(20, "assistant", 19), (21, "assistant", 19), (22, "user", 21)], {20}),
        # Of one time, and the reply stands first.
        ([(21, "assistant", 20, LATE), (20, "user", 19, LATE | {"message_id": "m20"})], set()),
        # One of long ago comes late.
        ([(10, "user", 9), (20, "user", 19), (21, "assistant", 20)], {10}),
    ],
    ids=["branch", "edit", "regenerated", "one time", "late"],
)
def test_whatever_stands_at_the_cut_what_was_gone_on_with_stays(tmp_path, make_io, rows, lost):
    log = [message(*row[:3], **(row[3] if len(row) > 3 else {})) for row in rows]
    metrics, quarantined, out = validated(tmp_path, make_io, from_before(*log), earlier=True)
    assert quarantined == {f"e-m{number}": "missing_parent" for number in lost}
    assert metrics["resumed_conversations"] == 1
    assert assembled(out, tmp_path)["problems"]["total"] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(
    trees=st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=9), min_size=1, max_size=4
    ),
    cut=st.integers(0, 11),
)
def test_wherever_conversations_are_cut_the_largest_tree_of_each_stays(tmp_path, trees, cut):
    """Trees with branches, tried replies and edits; message ``n`` is of minute ``n``."""
    left, largest = [], {}
    for of, drawn in enumerate(trees):
        name, parents, roles = f"c{of}", [None], ["user"]
        for number, (place, _) in enumerate(drawn, start=1):
            parents.append(place % number)
            roles.append("user" if roles[parents[number]] == "assistant" else "assistant")
        for number, parent in enumerate(parents):
            made = row(name, number, roles[number], "x", parent)
            if number and drawn[number - 1][1] and parents.index(parent) < number:
                made["replaces"] = f"{name}-{parents.index(parent)}"
            left += [made] * (number >= cut)
        sizes: dict[int, int] = {}
        for number in range(cut, len(parents)):
            root = number
            while parents[root] is not None and parents[root] >= cut:
                root = parents[root]
            sizes[root] = sizes.get(root, 0) + 1
        if sizes:
            largest[name] = f"{name}-{max(sizes, key=lambda root: (sizes[root], -root))}"
    left.sort(key=lambda item: (item["time"], item["event_id"]))
    path = tmp_path / "messages.parquet"
    write_rows(left, MESSAGES, path)
    cleared = beginnings(path, tmp_path / "scratch", 256)
    write_kept(path, np.ones(len(left), bool), tmp_path / "kept.parquet", cleared)
    rows = read_rows(tmp_path / "kept.parquet")
    first = {item["message_id"] for item in rows if item["parent_id"] is None}
    assert first == set(largest.values())
    for before, now in zip(left, rows, strict=True):
        lost = {"parent_id": None, "replaces": None} if cut and now["message_id"] in first else {}
        assert now == {"replaces": None, **before, **lost}
