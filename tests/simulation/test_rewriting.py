"""Rewrites of simulated annotators: obedient, in character, and not all alike."""

import random
from collections import Counter

import pytest

from flywheel_tasks.simulation.cards import checks_of, heldout_cards, load_cards
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.population import make_user, opener
from flywheel_tasks.simulation.rewriting import rewrite, voices
from flywheel_tasks.simulation.utility import persona, refuses, templated
from flywheel_tasks.simulation.wording import words
from tests.simulation.replies import REPLIES

CARDS = load_cards()


def _rewrites(card, count=60):
    found = []
    for number in range(count):
        rng = random.Random(f"{card.card_id} {number}")
        user = make_user(1, f"sim-user-{number:04d}", "user", CARDS)
        history = [{"role": "user", "content": opener(user, card, rng)}]
        found.append(rewrite(card, history, REPLIES[number % len(REPLIES)], rng))
    return found


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.card_id)
def test_rewrites_obey_the_card_are_in_character_and_differ(card):
    found = _rewrites(card)
    assert None not in found
    for text in found:
        assert all(obeys(check, text) for check in checks_of(card)), text
        assert persona(card, text) == 1, text
        assert not refuses(text)
        assert not templated(text)
    demanded = any(check.kind == "start_word" for check in checks_of(card))
    openings = Counter(tuple(words(text)[demanded : demanded + 3]) for text in found)
    assert len(openings) >= 10
    assert openings.most_common(1)[0][1] <= len(found) * 0.3, "a learner must not learn one opening"
    assert len(set(found)) >= 50


def test_every_sentence_of_a_voice_is_of_the_characters_world():
    assert set(voices()) == {card.card_id for card in CARDS}
    for card in CARDS:
        lines = voices()[card.card_id]
        assert len(lines) == len(set(lines)) >= 10
        assert [line for line in lines if persona(card, line.format(w="thing")) < 1] == []


def test_a_line_that_was_said_is_not_said_again():
    card = CARDS[0]
    said = " ".join(voices()[card.card_id][:-1])
    history = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "And now?"},
    ]
    for seed in range(20):
        text = rewrite(card, history, "You see what I am getting at?", random.Random(seed))
        assert text is None or not any(line in text for line in voices()[card.card_id][:-1])


def test_a_character_that_no_traffic_has_is_rewritten_without_a_voice():
    card = heldout_cards("characters")[0]
    text = rewrite(card, [{"role": "user", "content": "My boat leaks."}], REPLIES[0], random.Random(1))
    assert text is not None
    assert all(obeys(check, text) for check in checks_of(card))
