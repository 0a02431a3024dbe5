import random
from datetime import timedelta

import pyarrow as pa
import pytest

from flywheel_tasks.conversations import group as grouping
from flywheel_tasks.conversations.assemble import newest_cards
from flywheel_tasks.conversations.group import assemble_group
from flywheel_tasks.conversations.schemas import PROBLEMS, SIBLINGS, TIMED_PROMPTS
from flywheel_tasks.traffic.schemas import CARDS, MESSAGES, SIGNALS
from tests.curation.rows import card, message, signal


class Found:
    """Rows of an assembled group."""

    def __init__(self, log, signals=(), minutes=30, longest=99):
        group = assemble_group(
            pa.Table.from_pylist(list(log), schema=MESSAGES),
            pa.Table.from_pylist(list(signals), schema=SIGNALS),
            window=timedelta(minutes=minutes),
            longest_history=longest,
        )
        for name, schema in (("prompts", TIMED_PROMPTS), ("siblings", SIBLINGS), ("problems", PROBLEMS)):
            tables = getattr(group, name)
            assert all(table.schema.equals(schema) for table in tables)
            setattr(self, name, [row for table in tables for row in table.to_pylist()])
        self.counts = group.counts


def contents(prompt):
    return [turn["content"] for turn in prompt["history"]]


def test_every_user_turn_is_a_prompt_with_its_reply_and_signals():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Hello.", 0),
        message("a", 2, "user", "How are you?", 1),
        message("a", 3, "assistant", "Well.", 2),
    ]
    found = Found(log, [signal("a-3", "love"), signal("a-3", "thumb_up")])
    first, second = found.prompts
    assert first["history"] == [{"role": "user", "content": "Hi."}]
    assert (first["reply"], first["signals"], first["turn"]) == ("Hello.", ["continue"], 1)
    assert contents(second) == ["Hi.", "Hello.", "How are you?"]
    assert (second["reply"], second["signals"], second["turn"]) == ("Well.", ["thumb_up", "love"], 2)
    assert second["time"] == log[2]["time"]
    assert found.counts["used_messages"] == 4
    assert found.counts["used_signals"] == 2
    assert found.siblings == found.problems == []


def test_an_answer_after_the_window_is_no_continue():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Hello.", 0, minutes=1),
        message("a", 2, "user", "Back.", 1, minutes=32),
    ]
    assert Found(log, minutes=30).prompts[0]["signals"] == []
    assert Found(log, minutes=31).prompts[0]["signals"] == ["continue"]


def test_a_regenerated_reply_the_prompt_keeps_the_first_and_history_goes_on_with_the_answered_one():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Bad.", 0),
        message("a", 2, "assistant", "Good.", 0),
        message("a", 3, "user", "Nice.", 2),
    ]
    found = Found(log, [signal("a-1", "regenerate"), signal("a-2", "thumb_up")])
    first, second = found.prompts
    assert (first["reply"], first["signals"]) == ("Bad.", ["regenerate"])
    assert contents(second) == ["Hi.", "Good.", "Nice."]
    assert second["reply"] is None
    pair = found.siblings[0]
    assert (pair["prompt_id"], pair["chosen"], pair["rejected"]) == ("a-0", "Good.", "Bad.")
    assert (pair["chosen_id"], pair["rejected_id"], pair["known_by"]) == ("a-2", "a-1", "answered")
    assert contents(pair) == ["Hi."]
    assert found.counts["regenerated"] == 1


def test_going_back_to_the_first_sibling_makes_the_later_ones_the_rejected():
    log = [
        message("a", 0, "user", "Hi."),
        *(message("a", k, "assistant", f"Reply {k}.", 0) for k in (1, 2, 3)),
        message("a", 4, "user", "The first was best.", 1),
    ]
    found = Found(log)
    assert [(row["chosen"], row["rejected"]) for row in found.siblings] == [
        ("Reply 1.", "Reply 2."),
        ("Reply 1.", "Reply 3."),
    ]
    assert contents(found.prompts[1])[1] == "Reply 1."


def test_regenerated_and_left_the_last_sibling_stands():
    log = [message("a", 0, "user", "Hi."), *(message("a", k, "assistant", f"{k}", 0) for k in (1, 2))]
    assert [(row["chosen"], row["rejected"], row["known_by"]) for row in Found(log).siblings] == [
        ("2", "1", "regenerated")
    ]


def test_siblings_that_were_both_answered_say_nothing():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "One.", 0),
        message("a", 2, "user", "On.", 1),
        message("a", 3, "assistant", "Two.", 0),
        message("a", 4, "user", "Other way.", 3),
    ]
    found = Found(log)
    assert found.siblings == []
    assert [contents(row)[1:2] for row in found.prompts] == [[], ["One."], ["Two."]]


def test_an_edited_reply_is_chosen_over_what_it_replaces():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Teh sea.", 0),
        message("a", 2, "assistant", "The sea.", 0) | {"replaces": "a-1"},
        message("a", 3, "user", "Nice.", 2),
    ]
    found = Found(log)
    assert [(row["rejected"], row["known_by"]) for row in found.siblings] == [("Teh sea.", "edited")]
    assert found.counts["edited"] == 1


def test_an_edited_user_turn_is_a_branch_with_a_history_of_its_own():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Hello.", 0),
        message("a", 2, "user", "Hi there.") | {"replaces": "a-0"},
        message("a", 3, "assistant", "Good day.", 2),
        message("a", 4, "user", "Bye.", 3),
    ]
    found = Found(log)
    assert found.problems == []
    assert [contents(row) for row in found.prompts] == [
        ["Hi."],
        ["Hi there."],
        ["Hi there.", "Good day.", "Bye."],
    ]
    assert [row["reply"] for row in found.prompts] == ["Hello.", "Good day.", None]
    assert [row["turn"] for row in found.prompts] == [1, 1, 2]


@pytest.mark.parametrize("roles", [("user", "assistant", "user", "assistant"), ("user", "user")])
def test_messages_that_name_no_parent_have_no_order(roles):
    found = Found([message("a", k, role, str(k)) for k, role in enumerate(roles)])
    assert found.prompts == []
    assert [row["reason"] for row in found.problems] == ["two_roots"] * len(roles)


def test_a_character_may_speak_first():
    log = [message("a", 0, "assistant", "Welcome."), message("a", 1, "user", "Hi.", 0)]
    assert contents(Found(log).prompts[0]) == ["Welcome.", "Hi."]
    assert Found(log).prompts[0]["turn"] == 1


def test_messages_of_one_moment_are_put_in_the_order_of_their_answers():
    log = [
        message("a", 5, "user", "Hi.", minutes=0),
        message("a", 1, "assistant", "Hello.", 5, minutes=0),
        message("a", 3, "user", "Bye.", 1, minutes=0),
    ]
    expected = Found(log).prompts
    assert {tuple(contents(row)) for row in expected} == {("Hi.",), ("Hi.", "Hello.", "Bye.")}
    for seed in range(5):
        assert Found(random.Random(seed).sample(log, 3)).prompts == expected


def test_a_long_history_keeps_its_newest_messages_and_its_turn():
    log = [message("a", 0, "user", "0")]
    log += [message("a", k, "assistant" if k % 2 else "user", str(k), k - 1) for k in range(1, 9)]
    found = Found(log, longest=3)
    assert contents(found.prompts[-1]) == ["6", "7", "8"]
    assert found.prompts[-1]["turn"] == 5
    assert found.counts["shortened"] == 3


def test_histories_are_made_in_slices_of_few_bytes_and_most_of_them_only_when_asked_for(monkeypatch):
    log = [message("a", 0, "user", "0" * 100)]
    log += [message("a", k, "assistant" if k % 2 else "user", f"{k}" * 50, k - 1) for k in range(1, 40)]
    log += [message("a", 41 + k, "assistant", "again", k) for k in range(0, 40, 2)]
    whole = Found(log, longest=9)
    monkeypatch.setattr(grouping, "_SLICE_BYTES", 2_000)
    monkeypatch.setattr(grouping, "_AHEAD_BYTES", 4_000)
    made: list[int] = []
    histories = grouping._histories
    monkeypatch.setattr(
        grouping, "_histories", lambda *given: made.append(len(given[2])) or histories(*given)
    )
    tables = [pa.Table.from_pylist(rows, schema=schema) for rows, schema in ((log, MESSAGES), ([], SIGNALS))]
    found = assemble_group(*tables, window=timedelta(minutes=30), longest_history=9)
    assert sum(made) < 20  # of 20 prompts and 20 pairs
    for name, slices in (("prompts", list(found.prompts)), ("siblings", list(found.siblings))):
        assert [row for table in slices for row in table.to_pylist()] == getattr(whole, name)
        assert len(slices) > 4
        for table in slices:
            assert sum(len("".join(contents(row))) for row in table.to_pylist()) < 2_000 + 9 * 100


BROKEN = {
    "missing_parent": [message("b", 1, "user", "x"), message("b", 2, "assistant", "y", 7)],
    "cycle": [
        message("b", 1, "user", "x"),
        message("b", 2, "user", "y", 3),
        message("b", 3, "assistant", "z", 2),
    ],
    "two_roots": [
        message("b", 1, "user", "x"),
        message("b", 2, "assistant", "y", 1),
        message("b", 3, "user", "z"),
    ],
    "no_root": [
        message("b", 1, "user", "x") | {"replaces": "b-2"},
        message("b", 2, "user", "x") | {"replaces": "b-1"},
    ],
    "bad_replacement": [
        message("b", 1, "user", "x"),
        message("b", 2, "assistant", "y", 1) | {"replaces": "b-1"},
    ],
    "repeated_message_id": [message("b", 1, "user", "x"), message("b", 1, "user", "y", minutes=4)],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_conversation_without_order_is_named_and_the_others_go_on(reason):
    good = [message("a", 0, "user", "Hi."), message("c", 0, "user", "Ho.")]
    signals = [signal("b-1", "love"), signal("a-0", "love"), signal("a-9", "love")]
    found = Found([*BROKEN[reason], *good], signals)
    assert [row["prompt_id"] for row in found.prompts] == ["a-0", "c-0"]
    problems = [(row["type"], row["message_id"], row["reason"]) for row in found.problems]
    assert problems == [
        *(("message", row["message_id"], reason) for row in BROKEN[reason]),
        ("signal", "a-9", "signal_without_message"),
        ("signal", "b-1", reason),
    ]
    assert all(row["detail"] for row in found.problems)
    assert found.counts["broken_conversations"] == 1


def test_a_message_id_in_two_conversations_breaks_both():
    twice = message("b", 0, "user", "Hi.") | {"message_id": "a-0"}
    found = Found([message("a", 0, "user", "Hi."), twice, message("c", 0, "user", "Ho.")])
    assert [row["reason"] for row in found.problems] == ["repeated_message_id"] * 2
    assert len(found.prompts) == 1


def test_nothing_gives_nothing():
    found = Found([], [signal("a-0", "love")])
    assert (found.prompts, found.siblings) == ([], [])
    assert [row["reason"] for row in found.problems] == ["signal_without_message"]


def test_the_newest_card_wins_whatever_the_order():
    rows = [card("c1", "Old", 0), card("c1", "New", 2), card("c1", "Mid", 1), card("c0", "Other")]
    for seed in range(4):
        found = newest_cards(
            pa.Table.from_pylist(random.Random(seed).sample(rows, 4), schema=CARDS)
        ).to_pylist()
        assert [row["card_id"] for row in found] == ["c0", "c1"]
        assert found[1]["name"] == "New"
    assert newest_cards(CARDS.empty_table()).num_rows == 0
