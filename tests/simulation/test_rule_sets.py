"""Characters on several cards: rules that can be read, checked and obeyed, and none of those kept for the panel."""

import os
import random
import statistics
import subprocess
import sys
from collections import Counter

import pytest

from flywheel_tasks.evaluation.instructions import instruction_checks, obeyed
from flywheel_tasks.simulation.cards import character_of, checks_of, heldout_cards, load_cards, world_of
from flywheel_tasks.simulation.checks import KINDS, obeys
from flywheel_tasks.simulation.obeying import obeying
from flywheel_tasks.simulation.panel import cards_of
from flywheel_tasks.simulation.population import make_population
from flywheel_tasks.simulation.rewriting import answers_of, rewrite, written_for
from flywheel_tasks.simulation.rule_sets import traffic_cards
from flywheel_tasks.simulation.rules import Check, rules
from flywheel_tasks.simulation.utility import persona
from flywheel_tasks.simulation.wording import words
from tests.simulation.replies import REPLIES

SETS = 8
KEPT_ANYWAY = {"forbid_word", "no_digits", "no_emoji", "no_lists"}
CARDS = traffic_cards(SETS)
OTHERS = CARDS[len(load_cards()) :]
MORE = (
    "Indeed, dear friend, the sea is calm.",
    "Well, pal, I have bread and tea! 🌊",
    "Oh, neighbour, never just a good moon, maybe?",
    "now listen, traveller, this is really very nice.",
    "Ah, champ! A button, but sorry, please.",
    "Listeners, one. Two! Three?",
)


def test_one_set_is_the_cards_as_they_are_and_more_sets_change_none_of_fewer():
    assert traffic_cards(1) == load_cards()
    assert CARDS[:100] == traffic_cards(5)
    assert len({card.card_id for card in CARDS}) == len(CARDS) == 160
    for card in OTHERS:
        first = next(other for other in load_cards() if other.card_id == character_of(card.card_id))
        assert (card.name, card.traits) == (first.name, first.traits)
        assert world_of(first) - world_of(card) <= {str(check.value) for check in checks_of(card)}


def test_cards_and_replies_are_the_same_in_every_process():
    """A set's order differs from process to process."""
    code = (
        "import random; from flywheel_tasks.simulation.rule_sets import traffic_cards as cards;"
        "from flywheel_tasks.simulation.rewriting import rewrite; rng = random.Random(2);"
        "said = [{'role': 'user', 'content': 'Do you like storms?'}];"
        f"print([(card, rewrite(card, said, 'No.', rng)) for card in cards({SETS})])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_every_card_asks_two_things_that_no_other_card_of_the_character_asks_together():
    assert all(len(checks_of(card)) == len(card.instructions) == 2 for card in CARDS)
    assert len({(card.name, frozenset(checks_of(card))) for card in CARDS}) == len(CARDS)
    kinds = Counter(check.kind for card in OTHERS for check in checks_of(card))
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) <= 4 * min(kinds.values())
    assert not [card for card in OTHERS if {check.kind for check in checks_of(card)} <= KEPT_ANYWAY]


def test_a_wording_asks_one_thing_only():
    asked = Counter(text for rule in rules() for text in set(rule.wordings))
    checks = {text: {r.check for r in rules() if text in r.wordings} for text in asked}
    assert [text for text, found in checks.items() if len(found) > 1] == []


def _in_a_row(text, count=4):
    said = words(text)
    return {tuple(said[k : k + count]) for k in range(len(said) - count + 1)}


def test_what_the_panel_asks_in_other_words_is_asked_of_nobody_else():
    held = [text for card in heldout_cards("wordings") for text in card.instructions]
    rows = set().union(*map(_in_a_row, held))
    assert [text for rule in rules() for text in rule.wordings if _in_a_row(text) & rows] == []
    for card in heldout_cards("wordings"):
        kinds = {check.kind for other in CARDS if other.name == card.name for check in checks_of(other)}
        assert not kinds & {check.kind for check in checks_of(card)}, card.name
    assert not {card.name for card in CARDS} & {card.name for card in heldout_cards("characters")}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: f"{rule.family}-{rule.check.value}")
def test_the_evaluations_own_checker_says_of_every_wording_what_the_simulated_people_say(rule):
    for text in rule.wordings:
        assert "{" not in text
        for reply in (*REPLIES, *MORE):
            told = obeyed(instruction_checks(text), reply)
            assert (bool(told) and all(told)) == obeys(rule.check, reply), (text, reply)


@pytest.mark.parametrize("card", OTHERS, ids=lambda card: card.card_id)
def test_most_of_what_is_said_can_be_answered_by_the_card(card):
    rng = random.Random(1)
    found = [
        [written_for(card, text.replace("{w}", "morning"), rng) for text in texts]
        for texts in answers_of(card.card_id).values()
    ]
    assert sum(any(texts) for texts in found) >= 0.7 * len(found)
    said = [text for texts in found for text in texts if text]
    names = {"dear", "champ"} - {check.value for check in checks_of(card)}
    for text in said:
        assert all(obeys(check, text) for check in checks_of(card)), text
        assert 4 <= len(words(text)) <= 32, text
    assert statistics.median(len(words(text)) for text in said) >= 9
    assert sum(persona(card, text) > 0 for text in said) >= 0.5 * len(said), "of the character's own world"
    assert sum(bool(names & set(words(text))) for text in said) <= 0.02 * len(said)


def test_the_first_card_is_answered_as_it_was_written():
    rng = random.Random(1)
    for card in load_cards():
        texts = [text for replies in answers_of(card.card_id).values() for text in replies]
        assert [written_for(card, text, rng) for text in texts] == texts


def test_greetings_keep_the_rules_too():
    greeted = [card for card in OTHERS if card.greeting is not None]
    assert len(greeted) > 0.9 * len(OTHERS)
    assert all(obeys(check, card.greeting) for card in greeted for check in checks_of(card))


def test_a_rewrite_is_for_the_card_that_was_shown():
    line = "Do you like storms?"
    for card in OTHERS[:40]:
        text = rewrite(card, [{"role": "user", "content": line}], REPLIES[0], random.Random(3))
        assert text is None or all(obeys(check, text) for check in checks_of(card))
    assert rewrite(OTHERS[0], [{"role": "user", "content": line}], REPLIES[0], random.Random(3))


SAID = "Mr. Hale keeps bees, and they like you. I saw it! Do you bring honey?"


@pytest.mark.parametrize(
    ("checks", "found"),
    [
        ([Check("max_sentences", 1)], "Mr. Hale keeps bees, and they like you."),
        ([Check("max_sentences", 1), Check("end_question")], None),
        ([Check("no_question")], "Mr. Hale keeps bees, and they like you. I saw it!"),
        ([Check("no_exclamation")], SAID.replace("!", ".")),
        ([Check("lowercase")], SAID.lower()),
        ([Check("one_emoji")], f"{SAID} 🐝"),
        ([Check("start_word", "well")], f"Well, {SAID}"),
        ([Check("max_words", 8), Check("end_question")], None),
        ([Check("mention", "sea")], None),
        (
            [Check("forbid_word", "mr"), Check("start_word", "oh")],
            "Oh, Hale keeps bees, and they like you. I saw it! Do you bring honey?",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str | None) else "-".join(check.kind for check in value),
)
def test_what_is_left_out_and_put_in(checks, found):
    common = frozenset(words(SAID)) - {"mr", "hale"}
    got = obeying(SAID, checks, [], emojis="🐝", common=common, rng=random.Random(1))
    assert got == found


def test_capitals_and_first_words_of_the_first_card_are_taken_back():
    small = obeying(
        "i'm late. are you? ask dr. who, i say.",
        [],
        [Check("lowercase")],
        emojis="🐝",
        common=frozenset(),
        rng=random.Random(1),
    )
    assert small.startswith("I'm late. Are you?")
    assert " I say." in small
    indeed = obeying(
        "Indeed, it does.  ",
        [],
        [Check("start_word", "indeed")],
        emojis="🐝",
        common=frozenset(),
        rng=random.Random(1),
    )
    assert indeed is None, "three words are no reply"


def test_a_name_for_the_user_stands_at_a_sentence():
    said = {
        obeying(
            "The rope is wet. Shall we row?",
            [Check("mention", "pal")],
            [],
            emojis="🐝",
            common=frozenset({"the"}),
            rng=random.Random(seed),
        )
        for seed in range(30)
    }
    assert said == {
        "Pal, the rope is wet. Shall we row?",
        "The rope is wet, pal. Shall we row?",
        "The rope is wet. Shall we row, pal?",
    }


def test_all_cards_of_a_character_are_as_popular():
    users = make_population(5, 4000, 0.0, CARDS)
    chosen = Counter(user.cards[0] for user in users)
    first = [chosen[card.card_id] for card in CARDS if card.name == CARDS[0].name]
    last = [chosen[card.card_id] for card in CARDS if card.name == CARDS[19].name]
    assert sum(first) > 2 * sum(last)
    assert max(first) < 2 * min(first)


def test_the_panel_talks_to_one_card_of_each_character_and_to_every_number():
    cards = cards_of("training", SETS)
    assert [card.name for card in cards] == [card.name for card in load_cards()]
    numbers = Counter(CARDS.index(card) // 20 for card in cards)
    assert set(numbers) == set(range(SETS))
    assert max(numbers.values()) - min(numbers.values()) <= 1


def _plainly(text, written_for, checks=()):
    common = frozenset({"listeners", "the", "there", "you", "i", "it"})
    return obeying(text, checks, written_for, emojis="🐝", common=common, rng=random.Random(1))


def test_a_first_word_goes_only_where_it_stands_apart():
    rule = [Check("start_word", "listeners")]
    assert _plainly("Listeners, the night is long here.", rule) == "The night is long here."
    kept = "Listeners know that the night is long."
    assert _plainly(kept, rule) == kept


def test_nobody_is_called_two_names():
    rule = [Check("mention", "dear")]
    said = "There you are, dear. Ask the bees, dear, they know it."
    assert _plainly(said, rule) == "There you are. Ask the bees, they know it."
    assert _plainly(said, rule, [Check("mention", "pal")]) == said.replace("dear", "pal")


@pytest.mark.parametrize(
    ("text", "check", "found"),
    [
        ("Are you content?! I am, at last.", "no_exclamation", "Are you content? I am, at last."),
        ("A thief!!! Hold the door for me.", "no_exclamation", "A thief. Hold the door for me."),
        ("A thief!!! Hold the door for me!", "one_exclamation", "A thief! Hold the door for me."),
    ],
)
def test_marks_in_a_row_are_one(text, check, found):
    assert _plainly(text, [], [Check(check)]) == found


def test_an_article_keeps_its_word():
    assert _plainly("A very angry goose is very loud.", [], [Check("forbid_word", "very")]) is None
    assert (
        _plainly("The goose is very loud today.", [], [Check("forbid_word", "very")])
        == "The goose is loud today."
    )
