import itertools

import pytest

from flywheel_tasks.privacy.outgoing import identifiers_in
from flywheel_tasks.privacy.policy import protect, protect_card, still_identified
from tests.privacy.conftest import SETTINGS

POLICY = SETTINGS.policy


# What the detector lets through on purpose: no such domain, a version; and the outgoing scan does not.
LET_THROUGH = [
    ("write mira@lighthouse.sea", "EMAIL"),
    ("ssh root@server.local", "EMAIL"),
    ("update to firmware 10.20.30.40", "IP"),
    ("version: 10.20.30.40", "IP"),
    ("VERSION 10.20.30.40", "IP"),
]


def row(prompt, turn, texts, reply, conversation="c"):
    roles = itertools.cycle(["user", "assistant"])
    history = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {
        "prompt_id": prompt,
        "conversation_id": conversation,
        "turn": turn,
        "history": history,
        "reply": reply,
    }


def said(rows):
    return [[*(turn["content"] for turn in one["history"]), one["reply"]] for one in rows]


def test_one_identifier_has_one_placeholder_through_a_conversation(detector):
    first = "I am a@example.com, or b@example.com"
    rows = [
        row("p2", 1, [first, "You wrote B@example.com?", "yes, a (at) example.com"], "Then c@example.com"),
        row("p1", 0, [first], "You wrote B@example.com?"),
        row("p3", 0, ["b@example.com"], None, conversation="d"),
    ]
    protected = protect(rows, detector, POLICY)
    assert said(protected.rows) == [
        ["I am [EMAIL_1], or [EMAIL_2]", "You wrote [EMAIL_2]?", "yes, [EMAIL_1]", "Then [EMAIL_3]"],
        ["I am [EMAIL_1], or [EMAIL_2]", "You wrote [EMAIL_2]?"],
        ["[EMAIL_1]", None],
    ]
    assert protected.counts["EMAIL"] == {"action": "replace", "identifiers": 4, "prompts": 3}
    assert protected.reasons == {}
    assert said(protect(rows[::-1], detector, POLICY).rows)[::-1] == said(protected.rows)


def test_each_type_is_treated_by_its_policy(detector):
    rows = [
        row("p1", 0, ["card 4111 1111 1111 1111 of a@example.com"], "ok"),
        row("p2", 0, ["hello"], "my own card is 4111-1111-1111-1111", conversation="d"),
        row("p3", 0, ["ping 192.168.2.4, not 4111"], "ok", conversation="e"),
    ]
    protected = protect(rows, detector, {**POLICY, "IP": "keep"})
    assert protected.reasons == {
        "p1": ("privacy:CARD", "in turn 0 of the history"),
        "p2": ("privacy:CARD", "in the reply"),
    }
    assert protected.rows[2] == rows[2]
    assert protected.counts["IP"] == {"action": "keep", "identifiers": 1, "prompts": 1}
    assert protected.counts["CARD"] == {"action": "drop", "identifiers": 2, "prompts": 2}


def test_identifiers_in_cards_are_replaced_whatever_the_policy(detector):
    card = {
        "card_id": "c",
        "name": "Mira",
        "traits": ["pays by 4111 1111 1111 1111"],
        "instructions": ["Say: mail m@example.com", "Be kind."],
    }
    cleaned = protect_card(card, detector, POLICY)
    assert cleaned["traits"] == ["pays by [CARD_1]"]
    assert cleaned["instructions"] == ["Say: mail [EMAIL_1]", "Be kind."]


@pytest.mark.parametrize(("text", "kind"), LET_THROUGH)
def test_where_the_scans_differ_the_prompt_goes(detector, text, kind):
    rows = [row("p1", 0, [text], "ok"), row("p2", 0, ["hello"], text), row("p3", 0, ["hello"], "ok")]
    protected = protect(rows, detector, POLICY)
    assert protected.reasons == {}
    assert protected.rows == rows
    assert still_identified(rows, POLICY) == {
        "p1": (f"privacy:{kind}", "in turn 0 of the history, by the outgoing scan"),
        "p2": (f"privacy:{kind}", "in the reply, by the outgoing scan"),
    }
    assert still_identified(rows, {**POLICY, kind: "keep"}) == {}


def test_a_number_in_two_lines_or_turns_takes_its_prompt(detector):
    rows = [
        row("p1", 0, ["4111 1111\n1111 1111"], "ok"),
        row("p2", 1, ["hello", "it starts 4111 1111", "1111 1111"], "ok"),
        row("p3", 2, ["hello", "it starts 4111 1111", "1111 1112"], "ok"),
    ]
    assert protect(rows, detector, POLICY).reasons == {}
    where = ("privacy:CARD", "in the last turns together, by the outgoing scan")
    assert still_identified(rows, POLICY) == {"p1": where, "p2": where}


@pytest.mark.parametrize(("text", "kind"), LET_THROUGH)
def test_where_the_scans_differ_the_words_of_a_card_are_replaced(detector, text, kind):
    card = {"card_id": "c", "name": "Mira", "traits": [f"Say {text}!", "calm"], "instructions": ["Be kind."]}
    cleaned = protect_card(card, detector, POLICY)
    assert cleaned == {**card, "traits": [f"Say {text.rpartition(' ')[0]} [{kind}_1]", "calm"]}
    assert identifiers_in(cleaned["traits"][0]) == []
    assert protect_card(card, detector, {**POLICY, kind: "keep"}) == card
