import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import production
from flywheel_tasks.evaluation.production import Answered

CARD = Card("c", "Mae", ("sailor",), ("Never use emoji.", "Answer in at most 4 words.", "Be kind."))
FREE = Card("f", "Tom", (), ("Be kind.",))


def answered(replies: list[str], card: Card = CARD, said: str = "Hello there!") -> list[Answered]:
    history = [{"role": "user", "content": said}]
    return [
        Answered(f"p{i}", f"u{i}", card, history, reply, len(reply.split()))
        for i, reply in enumerate(replies)
    ]


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot do that",
        "As an AI language model, I don't have feelings.",
        "I cannot assist you with this request.",
        "I apologize, but I'm not able to continue.",
        "That goes against my guidelines.",
    ],
)
def test_refusals(reply: str) -> None:
    assert production.false_refusal(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I can't wait to see you!",
        "I can't believe it!",
        "Sorry I'm late! I can't stop laughing.",
        "Help! I need somebody.",
        "I'm afraid of the dark.",
        "You can't beat the sea.",
    ],
)
def test_no_refusals(reply: str) -> None:
    assert not production.false_refusal(reply)


def test_breaking_character() -> None:
    assert production.breaks_character("Hi! I'm your friendly assistant.")
    assert production.breaks_character("I am just a language model")
    assert not production.breaks_character("I'm the baker's assistant, and I aim high.")


def test_a_phrase_that_recurs_over_prompts_is_templated() -> None:
    phrase = "the sea gives and the sea takes"
    rows = answered([f"Well, {phrase}, {i} times." for i in range(3)] + ["A gull stole my hat."])
    assert production.templated(rows) == [True, True, True, False]
    assert production.templated(rows[:2] + rows[3:]) == [False] * 3  # twice is no template


def test_a_phrase_of_the_card_or_the_history_is_not_templated() -> None:
    phrase = "the sea gives and the sea takes"
    assert not any(
        production.templated(
            answered([f"{phrase}, {i}!" for i in range(5)], said=f"Is it true that {phrase}?")
        )
    )


def test_several_replies_to_one_prompt_are_one_prompt() -> None:
    row = answered(["Well, the sea gives and the sea takes."])[0]
    assert production.templated([row] * 5) == [False] * 5


def test_stock_phrases_are_templated() -> None:
    assert production.templated(answered(["Hi! How can I help you today?"])) == [True]


def test_wall_of_text_is_one_long_paragraph() -> None:
    assert production.wall_of_text("word " * 61)
    assert not production.wall_of_text("word " * 60)
    assert not production.wall_of_text(("word " * 40 + "\n") * 3)


def test_summary_counts_by_hand() -> None:
    rows = answered(["Aye.", "Aye 🙂 and four more words.", "", "To the sea"])
    found = production.summarise(rows)
    assert found["emoji"]["value"] == 0.25
    assert found["empty"]["value"] == 0.25
    assert found["cut_off"]["value"] == 0.5
    assert found["instruction_following"]["value"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found["instruction_violation"]["value"] == 0.5
    assert found["words"]["value"] == pytest.approx((1 + 5 + 0 + 3) / 4)
    assert found["instruction_following"]["n"] == 4


def test_unchecked_instructions_count_neither_way() -> None:
    found = production.summarise(answered(["Hello!", "Bye!"], card=FREE))
    assert found["instruction_following"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    assert production.instruction_coverage({"c": CARD, "f": FREE}) == {"checked": 2, "unchecked": 2}
