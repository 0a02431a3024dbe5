import random

import pytest

from flywheel_tasks.curation.conversations import assemble, newest_cards
from flywheel_tasks.curation.tables import CurationError
from tests.curation.rows import card, message, signal


def test_every_user_turn_is_a_prompt_with_its_reply_and_signals():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Hello.", 0),
        message("a", 2, "user", "How are you?", 1),
        message("a", 3, "assistant", "Well.", 2),
    ]
    found = assemble(log, [signal("a-3", "love"), signal("a-3", "thumb_up")], 30)
    first, second = found.prompts
    assert first["history"] == [{"role": "user", "content": "Hi."}]
    assert (first["reply"], first["signals"], first["turn"]) == ("Hello.", ["continue"], 1)
    assert [turn["content"] for turn in second["history"]] == ["Hi.", "Hello.", "How are you?"]
    assert (second["reply"], second["signals"], second["turn"]) == ("Well.", ["thumb_up", "love"], 2)
    assert found.counts["prompts"] == 2
    assert found.counts["messages"] == 4


def test_an_answer_after_the_window_is_no_continue():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Hello.", 0, minutes=1),
        message("a", 2, "user", "Back.", 1, minutes=32),
    ]
    assert assemble(log, [], 30).prompts[0]["signals"] == []
    assert assemble(log, [], 31).prompts[0]["signals"] == ["continue"]


def test_a_regenerated_reply_the_prompt_keeps_the_first_and_history_goes_on_with_the_answered_one():
    log = [
        message("a", 0, "user", "Hi."),
        message("a", 1, "assistant", "Bad.", 0),
        message("a", 2, "assistant", "Good.", 0),
        message("a", 3, "user", "Nice.", 2),
    ]
    first, second = assemble(log, [signal("a-1", "regenerate"), signal("a-2", "thumb_up")], 30).prompts
    assert (first["reply"], first["signals"]) == ("Bad.", ["regenerate"])
    assert [turn["content"] for turn in second["history"]] == ["Hi.", "Good.", "Nice."]
    assert second["reply"] is None


def test_without_parents_the_order_of_the_log_decides():
    log = [message("a", k, role, str(k)) for k, role in enumerate(["user", "assistant", "assistant", "user"])]
    first, second = assemble(log, [], 30).prompts
    assert first["reply"] == "1"
    assert [turn["content"] for turn in second["history"]] == ["0", "2", "3"]


def test_a_character_may_speak_first_and_an_orphan_is_counted():
    log = [
        message("a", 0, "assistant", "Welcome."),
        message("a", 1, "user", "Hi."),
        message("b", 0, "assistant", "Lost.", 7),
    ]
    found = assemble(log, [], 30)
    assert [turn["content"] for turn in found.prompts[0]["history"]] == ["Welcome.", "Hi."]
    assert found.counts["orphan_replies"] == 1


def test_messages_of_one_moment_are_put_in_the_order_of_their_answers():
    log = [
        message("a", 5, "user", "Hi.", minutes=0),
        message("a", 1, "assistant", "Hello.", 5, minutes=0),
        message("a", 3, "user", "Bye.", 1, minutes=0),
    ]
    expected = assemble(log, [], 30).prompts
    assert [turn["content"] for turn in expected[1]["history"]] == ["Hi.", "Hello.", "Bye."]
    for seed in range(5):
        assert assemble(random.Random(seed).sample(log, 3), [], 30).prompts == expected


def test_a_message_id_in_two_conversations_is_an_error():
    twice = message("b", 0, "user", "Hi.") | {"message_id": "a-0"}
    with pytest.raises(CurationError, match="a-0 occurs twice"):
        assemble([message("a", 0, "user", "Hi."), twice], [], 30)


def test_the_newest_card_wins_whatever_the_order():
    rows = [card("c1", "Old", 0), card("c1", "New", 2), card("c1", "Mid", 1), card("c0", "Other")]
    for seed in range(4):
        found = newest_cards(random.Random(seed).sample(rows, 4))
        assert list(found) == ["c0", "c1"]
        assert found["c1"]["name"] == "New"
