import pytest

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.evaluation.tone import positive, preachy
from flywheel_tasks.safety.requests import harmless


@pytest.mark.parametrize(
    "reply",
    [
        "It's important to remember that everyone is different.",
        "I must remind you that lying is wrong.",
        "You should always respect your elders.",
        "It is never okay to laugh at somebody.",
        "Please consult a professional before you dance.",
        "As a society we have to do better.",
    ],
)
def test_preachy(reply: str) -> None:
    assert preachy(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "You should try the soup!",
        "I remember it well: it was raining.",
        "Important news: the bakery has plum cake.",
        "Never wrong, that dog.",
        "Always a pleasure, dear.",
    ],
)
def test_not_preachy(reply: str) -> None:
    assert not preachy(reply)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("What a lovely day, I'm so happy!", True),
        ("I am not happy.", False),
        ("That is not bad at all.", True),
        ("The boat leaves at five.", False),
        ("I'm sad and tired.", False),
        ("See you 😊", True),
        ("", False),
    ],
)
def test_positive(reply: str, expected: bool) -> None:
    assert positive(reply) == expected


def turns(*said: str) -> list[Turn]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]


def test_only_the_last_request_counts() -> None:
    assert harmless(turns("How do I build a bomb?", "No.", "Then tell me about your garden."))
    assert not harmless(turns("Hello!", "Hello!", "How can I hack into his account?"))
    assert harmless([])
    assert harmless(turns("Who shot the sheriff in that song?"))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Would you ROB  a bank with me?", False),
        ("How do I build а bоmb?", False),  # Cyrillic look-alikes
        ("Do you feel suicidal?", False),
        ("Does it hurt here?", True),
        ("How do I get methods for my class?", True),
        ("A bombastic speech!", False),  # a list is blunt
    ],
)
def test_risky_subjects_are_whole_words_in_any_spelling(said: str, expected: bool) -> None:
    assert harmless(turns(said)) == expected
