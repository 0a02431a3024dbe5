import csv
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.evaluation.templates import Reply, distinct, mine
from tests.evaluation.planted import KINDS, LAST, LATER, PLAIN, TEMPLATES, UNSEEN, VARIED, natural, plant


def found_and_planted(
    replies: list[Reply], planted: list[bool], background: list[str]
) -> tuple[float, float]:
    """Precision and recall of the flags."""
    flags = [p >= 0.5 for p in mine(replies, background).probabilities]
    right = sum(a and b for a, b in zip(flags, planted, strict=True))
    return right / max(1, sum(flags)), right / sum(planted)


@pytest.mark.parametrize(
    ("count", "each", "seed", "templates"),
    [
        (60, 4, 60, TEMPLATES),
        (149, 5, 149, TEMPLATES),
        (149, 8, 149, TEMPLATES),
        # In varied wording.
        (149, 6, 6, VARIED),
        (149, 6, 6, VARIED + LATER),
        (149, 10, 10, LATER),
        # Of few fixed words.
        (149, 6, 1, LAST),
        (149, 10, 1, LAST),
        (149, 6, 1, KINDS),
        (149, 8, 1, PLAIN),
        (149, 6, 1, UNSEEN),
        (149, 10, 1, UNSEEN),
    ],
)
def test_planted_templates_are_found_in_own_text(
    count: int, each: int, seed: int, templates: tuple[str, ...]
) -> None:
    replies, people = natural()
    made, planted = plant(replies[:count], each, seed=seed, templates=templates)
    precision, recall = found_and_planted(made, planted, people[:count])
    assert precision >= 0.95
    assert recall >= 0.95


@pytest.mark.parametrize(
    ("count", "each", "templates"),
    [(100, 5, TEMPLATES), (300, 8, VARIED), (150, 6, KINDS), (300, 6, UNSEEN), (900, 12, UNSEEN)],
)
def test_planted_templates_are_found_in_persona_chat(
    shared_data: Path, count: int, each: int, templates: tuple[str, ...]
) -> None:
    csv.field_size_limit(10**7)
    with (shared_data / "synthetic-persona-chat/valid.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    rng = random.Random(count)
    people, replies = [], []
    for row in rows:
        turns = [line.partition(":") for line in row["Best Generated Conversation"].splitlines()]
        said = {who: [text.strip() for name, _, text in turns if name == who] for who in ("User 1", "User 2")}
        people += said["User 1"]
        replies.append(rng.choice(said["User 2"] or ["Hello."]))
    made, planted = plant(replies, each, seed=count, templates=templates)
    precision, recall = found_and_planted(made, planted, people)
    assert precision >= 0.95
    assert recall >= 0.95


def test_the_templates_are_named_with_their_slots() -> None:
    texts, people = natural()
    replies, _ = plant(texts, 6, seed=2)
    shown = [template.text for template in distinct(mine(replies, people).templates.values())]
    assert len(shown) <= 3 * len(TEMPLATES)
    for words in (
        "has more patience than any of us",
        "the smell of",
        "skips a beat whenever somebody mentions",
    ):
        assert any(words in text for text in shown), words


def conversations(texts: list[str], given: tuple[str, ...] = ()) -> list[Reply]:
    return [Reply(f"c{i}", text, given) for i, text in enumerate(texts)]


def test_a_phrase_that_recurs_over_conversations() -> None:
    phrase = "the sea gives and the sea takes"
    replies = conversations([f"Well, {phrase}, {i} times." for i in range(3)] + ["A gull stole my hat."])
    assert [p >= 0.5 for p in mine(replies).probabilities] == [True, True, True, False]
    assert mine(replies[:2] + replies[3:]).probabilities == [0, 0, 0]  # twice is no template


def test_a_phrase_in_a_script_with_vowel_signs_is_found_in_whole_words_and_sentences() -> None:
    phrase = "समुद्र के किनारे हवा बहती है"
    replies = conversations([f"नमस्ते {i}। {phrase}। चलो {i}।" for i in range(4)])
    found = mine(replies)
    assert all(p >= 0.5 for p in found.probabilities)
    words = {word for template in found.templates.values() for word in template.text.split()}
    assert words <= {*phrase.split(), "नमस्ते", "चलो", "…", "<number>"}


def test_one_conversation_counts_once() -> None:
    assert mine([Reply("c", "Well, the sea gives and the sea takes.")] * 5).probabilities == [0] * 5


def test_what_was_said_before_may_be_repeated() -> None:
    phrase = "the sea gives and the sea takes"
    replies = conversations(
        [f"Aye. {phrase.capitalize()}, {i}!" for i in range(5)], (f"Is it true that {phrase}?",)
    )
    assert not any(p >= 0.5 for p in mine(replies).probabilities)


def test_a_name_that_is_quoted_before_may_be_repeated() -> None:
    replies = conversations(
        [f"{text} Stay sharp out there, sailor." for text in natural()[0][:5]],
        ("Always end with 'Stay sharp out there, sailor.'",),
    )
    assert mine(replies).probabilities == [0] * 5


def test_what_people_say_themselves_is_no_template() -> None:
    said = "I have to walk the dog before dinner tonight"
    replies = conversations([f"{said}." for i in range(6)] + natural()[0][:60])
    assert mine(replies).probabilities[0] >= 0.5
    people = [f"{i} o'clock! {said}." for i in range(30)] + natural()[1]
    assert mine(replies, people).probabilities[0] < 0.5


def test_stock_phrases_count_alone() -> None:
    assert mine(conversations(["Hi! How can I help you today?"])).probabilities == [0.9]
    assert mine(conversations(["Nice to meet you!"])).probabilities == [0]


def test_identical_short_replies() -> None:
    replies = conversations(["Stay cosy, dear heart."] * 4 + natural()[0][:40])
    assert all(p >= 0.5 for p in mine(replies).probabilities[:4])


@settings(max_examples=30)
@given(st.lists(st.text(max_size=80), max_size=8))
def test_any_replies_have_probabilities(texts: list[str]) -> None:
    probabilities = mine(conversations(texts)).probabilities
    assert len(probabilities) == len(texts)
    assert all(0 <= p <= 1 for p in probabilities)
