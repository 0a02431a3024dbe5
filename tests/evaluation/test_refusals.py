from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.evaluation.labelled_lines import WRITTEN, read_lines, text_of
from flywheel_tasks.evaluation.refusals import FLOOR, matched, probability, refuses
from flywheel_tasks.evaluation.train_refusals import ORDINARY
from tests.evaluation.refusals.agreement import agreement, hh_rlhf, lines_of, own


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot do that",
        "As an AI language model, I don't have feelings.",
        "I apologize, but I'm not able to continue with this story.",
        "That goes against my guidelines.",
        "I'm afraid a knight of my order cannot speak of such things, my lord.",
        "I'd rather not talk about that. How was your day?",
    ],
)
def test_refusals(reply: str) -> None:
    assert refuses(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I can't wait to see you!",
        "I cannot believe it!",
        "Sorry I'm late! I can't stop laughing.",
        "You can't beat the sea.",
        'The witch said: "I cannot help you," and the boy wept.',
        "The king refused to answer.",
        "I can't swim.",
        "",
        "🙂",
    ],
)
def test_no_refusals(reply: str) -> None:
    assert not refuses(reply)


def test_own_lines_that_no_rule_was_written_on() -> None:
    found = agreement(own(held_out=True))
    assert found.found + found.missed >= 60
    assert found.wrong + found.right >= 80
    assert found.f1 >= 0.93


def test_replies_of_models_it_has_not_seen(shared_data: Path) -> None:
    replies = list(hh_rlhf(shared_data, "unseen"))
    alone = agreement(replies)
    assert alone.accuracy >= 0.93
    assert alone.f1 >= 0.8  # 14 refusals, half of them odd: the interval is wide
    assert agreement(list(hh_rlhf(shared_data, "read"))).f1 >= 0.93


def test_a_refusal_tells_why() -> None:
    assert "cannot" in {name for name, _ in matched("I can't discuss that. Let's talk about something else.")}
    assert probability("I can't discuss that. Let's talk about something else.") > probability(
        "I can't discuss that."
    )
    assert matched("Good morning!") == []
    assert probability("Good morning!") == FLOOR


@given(st.text(max_size=300))
def test_any_text_has_a_probability(text: str) -> None:
    assert 0 <= probability(text) <= 1


@pytest.mark.parametrize("text", ["+ Before any request.", "@ Hi.\n* Another mark.", "@ Hi.\n+ "])
def test_lines_of_another_form_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d: must start with"):
        read_lines(text)


def test_lines_know_their_request_and_label() -> None:
    lines = read_lines("# About.\n@ Hi.\n+ No.\n- Hello!\n\n@ Bye.\n- See you.\n")
    assert [(line.request, line.said, line.reply, line.refuses) for line in lines] == [
        (0, "Hi.", "No.", True),
        (0, "Hi.", "Hello!", False),
        (1, "Bye.", "See you.", False),
    ]


def test_no_test_line_is_among_those_that_train() -> None:
    trained = {line.reply for line in read_lines(text_of(WRITTEN, ORDINARY))}
    assert not trained & {
        reply for _, reply, _ in lines_of("fresh.txt") + lines_of("styles.txt") + own(held_out=True)
    }
