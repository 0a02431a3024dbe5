import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.instructions import checks, instruction_checks, unchecked

CASES = [
    ("Answer in at most 5 words.", "words", "one two three four five", "one two three four five six"),
    ("Keep it under 5 words.", "words", "one two three four", "one two three four five"),
    ("No more than twenty-one words!", "words", "word " * 21, "word " * 22),
    ("Keep every reply to 3 words or fewer.", "words", "one two three", "one two three four"),
    ("Reply with between 2 and 3 short words.", "words", "one two", "one"),
    ("Use at least ten words.", "words", "word " * 10, "word " * 9),
    ("Never write more than two sentences.", "sentences", "One. Two!", "One. Two! Three?"),
    ("Reply in one sentence.", "sentences", "Just this one.", "One. Two."),
    ("Always end with a question.", "end_question", 'He asked. "Really?" 😊', "Really? Yes."),
    ("Finish every reply by asking something back.", "end_question", "And you?", "And you."),
    ("Never end with a question.", "end_question", "Why? Because.", "Why?"),
    ("Never ask questions.", "questions", "I see.", "I see?"),
    ("Ask exactly one question.", "questions", "Why? I see.", "Why? How?"),
    ("Never ask more than one question.", "questions", "Why?", "Why? How?"),
    ("Never use emoji.", "emoji", "Hello :)", "Hello 👋🏽"),
    ("Put exactly one emoji in every reply.", "emoji", "Hi 👨‍👩‍👧", "Hi 🙂🙂"),
    ("Always include an emoji.", "emoji", "Hi 🙂", "Hi"),
    ("Use exactly one exclamation mark.", "exclamation_marks", "Yes! No.", "Yes! No!"),
    ("Never use exclamation marks.", "exclamation_marks", "Yes.", "Yes!"),
    ("Write only in lower case.", "lower_case", "all small, 2 of them", "All small"),
    ("Never use capital letters.", "lower_case", "quiet", "Quiet"),
    ("Write entirely in capital letters.", "upper_case", "LOUD 1", "Loud"),
    ("Never write lists.", "lists", "Bread and milk.", "Buy:\n- bread\n- milk"),
    ("Avoid bullet points.", "lists", "1 is a number.", "1. bread 2. milk"),
    ("Never use digits.", "digits", "seven", "7"),
    ("Never use the word 'very'.", "not_mention:very", "Everything, every day.", "Very well."),
    ("Never say “please”.", "not_mention:please", "I am pleased.", "Please come."),
    ("Never say 'sorry' or 'alas'.", "not_mention:alas", "Sorry.", "Alas!"),
    ("Work the word 'tea' into every reply.", "mention:tea", "More tea?", "A team."),
    ("Always mention a button.", "mention:button", "Two buttons!", "A butt on it."),
    ("Never mention money.", "not_mention:money", "Gold.", "Money."),
    ("Begin every reply with the word 'Indeed'.", "start:indeed", "*nods* Indeed, so.", "So, indeed."),
    ('Sign off with "fair winds".', "end:fair winds", "Go now. Fair  winds!", "Fair winds, friend."),
    ("Call the user 'dear'.", "mention:dear", "Yes, dear.", "Yes, deer."),
    ("Always finish your sentences.", "complete", "I went home.", "I went"),
    ("Reply only in French.", "language:french", "Bonjour, je suis dans le jardin.", "I am in the garden."),
    (
        "Always speak German with the user.",
        "language:german",
        "Ich bin heute nicht zu Hause.",
        "Je ne suis pas là.",
    ),
    ("Answer in Japanese.", "language:japanese", "今日はとても寒いですね。", "It is cold today."),
    (
        "Never answer in English.",
        "not_language:english",
        "Hola, soy yo y no es tarde.",
        "It is late and I know.",
    ),
    ("Don't use contractions.", "no_contractions", "I do not know the dog's name.", "I don't know."),
    ("Speak of yourself in the third person.", "third_person", "Pip likes worms.", "I like worms."),
    ("You are 34 years old.", "fact_age", "I'm thirty-four, since May.", "I am 29 years old."),
    ("Your name is Mae.", "fact_name", "My name is Mae, sailor.", "Call me Tom."),
    ("You live in Oslo with a cat.", "fact_home", "I live in Oslo.", "I live in Rome, you know."),
    ("Your favourite colour is green.", "fact_favourite_colour", "Green!", "My favorite colour is red."),
    ("You work as a baker.", "fact_work", "I work as a baker.", "I work as a spy."),
    ("Do not go over 3 sentences.", "sentences", "One. Two. Three.", "One. Two. Three. Four."),
    ("Limit yourself to 4 words.", "words", "one two three four", "one two three four five"),
    ("Responses must not exceed ten words.", "words", "word " * 10, "word " * 11),
    ("Use no more than a single emoji.", "emoji", "Hi 🙂", "Hi 🙂🙂"),
    ("Each reply should end in a question.", "end_question", "And you?", "And you."),
    ("Write everything in lowercase.", "lower_case", "quiet now", "Quiet now"),
    ("ALL CAPS, always.", "upper_case", "LOUD", "Loud"),
    ("Steer clear of the word 'money'.", "not_mention:money", "Gold.", "Money."),
    ("Refrain from using emojis.", "emoji", "Hello", "Hello 👋"),
]


@pytest.mark.parametrize(("instruction", "kind", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_understood_and_checked(instruction: str, kind: str, good: str, bad: str) -> None:
    found = {check.kind: check for check in instruction_checks(instruction)}
    if kind == "start:indeed":
        good = "Indeed, so."
    assert kind in found
    assert found[kind].obeyed(good)
    assert not found[kind].obeyed(bad)


@pytest.mark.parametrize(
    "instruction",
    [
        "Be warm and kind.",
        "If the user is sad, use no emoji.",
        "Use short sentences.",
        "You love lists of treasure.",
        "When asked, answer in at most 10 words.",
        "Try to end with a question.",
        "Speak like a sailor.",
        "Use a metaphor.",
    ],
)
def test_what_code_cannot_tell_is_unchecked(instruction: str) -> None:
    card = Card("c", "Mae", (), (instruction, "Never use emoji."))
    assert unchecked(card) == [instruction]
    assert [check.kind for check in checks(card)] == ["emoji"]


def test_one_instruction_with_several_rules() -> None:
    kinds = {
        c.kind
        for c in instruction_checks("Keep it under 30 words, never use emoji, and end with a question.")
    }
    assert kinds == {"words", "emoji", "end_question"}


def test_an_empty_reply_obeys_nothing() -> None:
    for instruction, *_ in CASES:
        assert not any(check.obeyed("  \n") for check in instruction_checks(instruction)), instruction


@given(limit=st.integers(1, 99), count=st.integers(1, 120))
def test_word_limits_hold_for_any_number(limit: int, count: int) -> None:
    (check,) = instruction_checks(f"Answer in at most {limit} words.")
    assert check.obeyed("word " * count) == (count <= limit)


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for check in instruction_checks(text):
        check.obeyed(text + "?")
