import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.chat.card import Card
from flywheel_tasks.simulation.cards import load_cards
from flywheel_tasks.simulation.population import make_population
from flywheel_tasks.simulation.utility import (
    AVERAGE,
    FEATURES,
    features,
    persona,
    refuses,
    repetition,
    sameness,
    templated,
    utility,
)
from tests.simulation.replies import REPLIES

MAE = next(
    card for card in load_cards() if card.card_id == "harbor-mae"
)  # mentions the sea, at most 25 words
ASKED = [{"role": "user", "content": "My garden is full of slugs again. Have you ever had a garden?"}]
GOOD = "I had a garden once, and the sea took my slugs. Will you build a wall around your garden?"


@pytest.mark.parametrize(
    "worse",
    [
        "I had a garden once, and a storm took my slugs. Will you build a wall around your garden?",  # no sea
        "I had a garden once, and the sea took my slugs. Will you build a wall around your",  # cut off
        "The sea, the sea, the sea, the sea, the sea, the sea, the sea, the sea.",  # repeats
        "I'm sorry, but as an AI I can't have a garden by the sea, but how is your garden?",
        "I'm glad to hear about the sea and the garden! How can I help you with the slugs?",
        "The sea is large.",  # short, takes nothing up, asks nothing
        "I had a garden by the sea. " * 12,
        "Sea 😀😀😀😀😀 garden?",
        "",
    ],
)
def test_a_planted_fault_costs_utility(worse):
    assert utility(MAE, ASKED, GOOD) > utility(MAE, ASKED, worse) + 0.3


def test_repetition_counts_earlier_replies_of_the_character():
    said = [*ASKED, {"role": "assistant", "content": GOOD}, {"role": "user", "content": "Go on."}]
    assert repetition(said, GOOD) == 1.0
    assert repetition(ASKED, GOOD) == 0.0


def test_a_card_that_forbids_questions_gets_no_credit_for_asking():
    tomas = next(card for card in load_cards() if card.card_id == "old-tomas")
    assert features(tomas, ASKED, "And you?")["asks"] == 0.0
    assert features(MAE, ASKED, "And you?")["asks"] == 1.0


def test_refusals_and_stock_phrases():
    assert refuses("I’m sorry, but I can’t do that.")
    assert refuses("As an AI, I know no fear.")
    assert not refuses("I am sorry for your loss.")
    assert templated("How may I assist you?")
    assert not templated("How is the tide?")


def test_unknown_instructions_are_not_judged():
    stranger = Card("c", "Sam", (), ("Speak like a pirate.",))
    assert features(stranger, ASKED, "Ahoy.")["instructions"] == 0.0


def test_replies_of_a_small_model_spread_widely():
    values = [utility(card, ASKED, reply) for card in load_cards() for reply in REPLIES]
    assert statistics.pstdev(values) > 1.0
    assert min(values) < -2.0
    assert max(values) > 2.5


@given(st.text(max_size=120))
def test_features_are_bounded_for_any_text(reply):
    found = features(MAE, ASKED, reply)
    assert tuple(found) == FEATURES
    assert all(-1.0 <= value <= 1.0 for value in found.values())


def test_users_differ_in_taste_but_agree_on_clear_cases():
    users = make_population(1, 40, 0.3, load_cards())
    assert len({user.taste for user in users}) == 40
    bad = "I'm sorry, but as an AI language model, I cannot have a garden. I cannot have a garden and"
    assert all(utility(MAE, ASKED, GOOD, user.taste) > utility(MAE, ASKED, bad, user.taste) for user in users)


def test_utility_is_a_function_of_its_arguments():
    order = random.Random(0).sample(REPLIES, len(REPLIES))
    assert {r: utility(MAE, ASKED, r) for r in order} == {r: utility(MAE, ASKED, r) for r in REPLIES}


SAID = [*ASKED, {"role": "assistant", "content": GOOD}, {"role": "user", "content": "Go on."}]


@pytest.mark.parametrize(
    ("feature", "better", "worse"),
    [
        ("instructions", GOOD, GOOD.replace("sea", "storm")),
        ("length", GOOD, GOOD + " My knees told me so, and my back agreed with my knees, as backs do."),
        ("complete", GOOD, GOOD.rsplit(" ", 1)[0]),
        ("repetition", GOOD, "I had a sea, I had a sea. Will you build a wall around your garden?"),
        ("relevance", GOOD, "I had a house once, and the sea took my hat. Will you build a boat for me?"),
        ("asks", GOOD, GOOD.replace("?", ".")),
        ("voice", GOOD, GOOD.replace("I had", "There was").replace("my slugs", "the slugs")),
        ("assistant", GOOD, "I'm sorry, but I can't help with slugs in a garden by the sea. Why not ask?"),
        ("template", GOOD, "Feel free to tell the sea about my garden and my slugs. Will you?"),
        ("surface", GOOD, GOOD + " 😀😀😀😀😀😀"),
        ("persona", GOOD.replace("once", "on my ferry"), GOOD),
        ("persona", GOOD, "My name is Emily, and the sea took my slugs. Will you build a wall?"),
    ],
)
def test_each_feature_moves_alone_in_its_direction(feature, better, worse):
    high, low = features(MAE, ASKED, better), features(MAE, ASKED, worse)
    assert high[feature] > low[feature]
    moved = {**high, feature: low[feature]}
    weighted = [sum(getattr(AVERAGE, name) * value for name, value in row.items()) for row in (high, moved)]
    assert weighted[0] > weighted[1], "more of the feature is liked more"


def test_a_name_of_another_is_out_of_character():
    assert persona(MAE, "My name is Emily.") == -1.0
    assert persona(MAE, "My name is Mae, and the ferry waits.") == 1.0
    assert persona(MAE, "I like the sea.") == 0.0, "the card demands the sea; it is counted there"


def test_beginning_and_ending_as_before_is_no_variety():
    assert sameness(MAE, ASKED, GOOD) == 0.0
    assert sameness(MAE, SAID, GOOD) == 1.0
    assert sameness(MAE, SAID, "I had a ferry. And you?") == 0.5
    ashcombe = next(card for card in load_cards() if card.card_id == "lady-ashcombe")
    indeed = [*ASKED, {"role": "assistant", "content": "Indeed, the sea."}, SAID[-1]]
    assert sameness(ashcombe, indeed, "Indeed, the rain.") == 0.0, "a demanded opening is no fault"


def test_emoji_are_spam_beyond_a_persons_own_taste():
    many, few = replace(AVERAGE, emoji=5), replace(AVERAGE, emoji=1)
    reply = GOOD + " 😀😀😀"
    assert utility(MAE, ASKED, reply, many) == utility(MAE, ASKED, GOOD, many)
    assert utility(MAE, ASKED, reply, few) < utility(MAE, ASKED, GOOD, few)
