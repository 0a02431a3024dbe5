from flywheel_tasks.evaluation.instructions import instruction_checks, obeyed, unchecked
from flywheel_tasks.simulation.cards import Check, check_of, checks_of, heldout_cards, load_cards, world_of
from flywheel_tasks.simulation.checks import KINDS, obeys
from tests.simulation.replies import REPLIES


def test_twenty_cards_with_two_instructions_each_that_code_can_check():
    cards = load_cards()
    assert len({card.card_id for card in cards}) == len(cards) == 20
    assert all(len(checks_of(card)) == 2 for card in cards)
    assert {check.kind for card in cards for check in checks_of(card)} <= set(KINDS)


def test_every_character_greets_by_its_own_rules():
    greetings = [card.greeting for card in load_cards()]
    assert len(set(greetings)) == 20
    assert [
        (card.name, check)
        for card in load_cards()
        for check in checks_of(card)
        if not obeys(check, card.greeting)
    ] == []


def test_the_evaluations_own_checker_understands_every_instruction():
    # It does not know the demo's checks: it finds instructions by patterns in their sentences.
    assert [text for card in load_cards() for text in unchecked(card)] == []


def test_the_evaluations_own_checker_says_what_the_simulated_people_say():
    # docs/campaign.md tells it: what RL's reward can check is then what the panel calls following.
    for text in {text for card in load_cards() for text in card.instructions}:
        for reply in REPLIES:
            told = obeyed(instruction_checks(text), reply)
            assert (bool(told) and all(told)) == obeys(check_of(text), reply), (text, reply)


def test_every_kind_tells_a_good_reply_from_a_bad_one():
    cases = {
        ("max_words", 3): ("I like rain.", "I like the rain."),
        ("max_sentences", 1): ("I came with Mr. Bean, late.", "I came. I saw."),
        ("end_question", None): ('And you?" 🌿', "And you? I do."),
        ("no_question", None): ("I do.", "Do I?"),
        ("lowercase", None): ("i do.", "I do."),
        ("one_exclamation", None): ("Ha! Yes.", "Ha! Yes!"),
        ("no_exclamation", None): ("Ha.", "Ha!"),
        ("no_emoji", None): ("Ha.", "Ha 😀"),
        ("one_emoji", None): ("Ha 👩‍🚀", "Ha 😀😀"),
        ("no_lists", None): ("One - two.", "Look:\n1. one\n2. two"),
        ("no_digits", None): ("Two.", "2."),
        ("forbid_word", "i"): ("My day.", "I'm here."),
        ("mention", "sea"): ("Two seas.", "A seal."),
        ("start_word", "indeed"): ("Indeed, yes.", "Yes, indeed."),
    }
    assert {kind for kind, _ in cases} == set(KINDS)
    for (kind, value), (good, bad) in cases.items():
        assert obeys(Check(kind, value), good), kind
        assert not obeys(Check(kind, value), bad), kind
        assert not obeys(Check(kind, value), " …"), kind


def test_held_out_characters_and_wordings_are_in_no_training_card():
    cards = load_cards()
    people = {card.name for card in cards}, {trait for card in cards for trait in card.traits}
    texts = {text for card in cards for text in card.instructions}
    characters, wordings = heldout_cards("characters"), heldout_cards("wordings")
    assert len(characters) == len(wordings) == 10
    assert not people[0] & {card.name for card in characters}
    assert not people[1] & {trait for card in characters for trait in card.traits}
    assert {text for card in characters for text in card.instructions} <= texts
    known = {card.name: card for card in cards}
    assert all(card.traits == known[card.name].traits for card in wordings)
    assert not texts & {text for card in wordings for text in card.instructions}
    assert all(len(checks_of(card)) == 2 for card in (*characters, *wordings))
    seen = {check.kind for card in cards for check in checks_of(card)}
    assert {check.kind for card in wordings for check in checks_of(card)} <= seen
    assert all(len(world_of(card)) > 8 for card in (*cards, *characters, *wordings))


def test_no_character_has_an_instruction_of_a_kind_again_that_it_has_in_training():
    known = {card.name: {check.kind for check in checks_of(card)} for card in load_cards()}
    wordings = heldout_cards("wordings")
    assert [c.name for c in wordings if known[c.name] & {check.kind for check in checks_of(c)}] == []


def test_people_of_the_panel_who_share_no_card_share_no_character():
    # Person k talks to card k modulo their number: a character in two places would join people who are counted apart.
    places = {card.name: place for place, card in enumerate(load_cards())}
    wordings = heldout_cards("wordings")
    assert [places[card.name] % len(wordings) for card in wordings] == list(range(len(wordings)))
