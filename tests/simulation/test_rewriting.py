"""What simulated annotators write: obedient, in character, an answer to what was said, and not all alike."""

import random
from collections import Counter

import pytest

from flywheel_tasks.simulation.cards import checks_of, heldout_cards, load_cards
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.population import answerable, bank, farewell, follow_up, make_user, opener
from flywheel_tasks.simulation.rewriting import WORD, answers_of, rewrite, said_last
from flywheel_tasks.simulation.utility import features, persona, refuses, templated
from flywheel_tasks.simulation.wording import sentences, words
from tests.simulation.replies import REPLIES

CARDS = load_cards()
by_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.card_id)


def _said(content):
    return [{"role": "user", "content": content}]


def _written(card):
    return [(line, text) for line, texts in answers_of(card.card_id).items() for text in texts]


@by_card
def test_each_character_answers_every_line_that_users_say(card):
    assert list(answers_of(card.card_id)) == list(answerable())
    assert all(len(texts) >= 2 for texts in answers_of(card.card_id).values())


@by_card
@pytest.mark.parametrize("word", ["morning", "letters"])
def test_whatever_word_is_taken_up_the_card_is_obeyed(card, word):
    for line, text in _written(card):
        filled = text.replace(WORD, word)
        assert all(obeys(check, filled) for check in checks_of(card)), filled
        assert not refuses(filled), filled
        assert not templated(filled), filled
        assert persona(card, filled) >= 0, filled
        assert 8 <= len(words(filled)) <= 28, filled
        assert "{" not in filled, filled
        assert WORD not in text or "{word}" in line, text


@by_card
def test_written_replies_are_many_and_differ(card):
    texts = [text.lower() for _, text in _written(card)]
    assert len(set(texts)) == len(texts) >= 700
    said = Counter(" ".join(words(s)) for text in texts for s in sentences(text) if len(words(s)) >= 4)
    assert said.most_common(1)[0][1] == 1, said.most_common(1)
    demanded = any(check.kind == "start_word" for check in checks_of(card))
    openings = Counter(tuple(words(text)[demanded : demanded + 2]) for text in texts)
    assert openings.most_common(1)[0][1] <= len(texts) / 30, "a learner must not learn one opening"


@by_card
def test_written_replies_are_what_the_guidelines_ask_for(card):
    rows = [
        features(
            card, _said(line.format(word="morning", mail="m", phone="p", card="c", url="u", name="n")), text
        )
        for line, text in _written(card)
    ]
    share = {name: sum(row[name] > 0 for row in rows) / len(rows) for name in rows[0]}
    assert share["persona"] > 0.7
    assert share["relevance"] > 0.6
    assert share["voice"] > 0.9
    silent = any(check.kind == "no_question" for check in checks_of(card))
    assert share["asks"] == 0 if silent else share["asks"] > 0.65


def test_every_message_of_users_has_a_line_to_answer():
    for number in range(600):
        source = "internal" if number % 2 else "user"
        user = make_user(1, f"sim-{source}-{number:04d}", source, CARDS)
        card, rng = CARDS[number % len(CARDS)], random.Random(number)
        first = opener(user, card, rng)
        history = [*_said(first), {"role": "assistant", "content": rng.choice(REPLIES)}]
        second, last = follow_up(user, history, rng.gauss(0.0, 1.5), rng), farewell(user, card, rng)
        for message in (first, second, last):
            found = said_last(message)
            assert found is not None, message
            assert message.lower().endswith(found[0].lower()) or "{" in found[0], (message, found)


def test_the_last_line_is_the_one_that_is_answered():
    says, asks = bank()["topics"]["garden"]["says"][0], bank()["topics"]["garden"]["asks"][0]
    assert said_last(f"Hi Pip. {says} {asks}") == (asks, None)
    assert said_last(f"{says} {asks}".lower()) == (asks, None)
    assert said_last("that is sweet of you. why Gulls of all things?") == (
        "Why {word} of all things?",
        "gulls",
    )
    assert said_last("Call me on [PHONE] when you know more.") == (
        "Call me on {phone} when you know more.",
        None,
    )
    assert said_last("The moon is made of cheese.") is None


@by_card
def test_a_rewrite_is_one_of_them_and_says_nothing_again(card):
    line = "Do you like storms?"
    free = set(answers_of(card.card_id)[line])
    said = next(iter(sorted(free)))
    history = [*_said("Hello."), {"role": "assistant", "content": said}, *_said(f"Anyway. {line}")]
    found = {rewrite(card, history, "You see?", random.Random(seed)) for seed in range(20)}
    assert found == free - {said}
    replaced = min(free - {said})
    again = {rewrite(card, history, replaced, random.Random(seed)) for seed in range(20)}
    assert again == (free - {said, replaced} or {None})


def test_an_id_of_somebodys_logs_names_no_file():
    assert answers_of("../cards") == answers_of("answers/harbor-mae") == answers_of("") == {}


def test_what_nobody_wrote_for_is_not_rewritten():
    rng = random.Random(1)
    assert rewrite(CARDS[0], _said("My ox is ill."), REPLIES[0], rng) is None
    assert rewrite(heldout_cards("characters")[0], _said("Do you like storms?"), REPLIES[0], rng) is None
