from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.prompt import plain_text, prompt_ids, prompt_messages, reply_ids

CARD = Card("c1", "Mira", ("calm",), ("Never use emoji.",))


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_models / "base")


def said(*texts: str) -> list[Turn]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def test_what_fits_is_shown_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    history = said("Hello there.", "Hi!", "How are you?")
    messages = prompt_messages(tokenizer, CARD, history, 500)
    assert messages == [{"role": "system", "content": CARD.system_prompt()}, *history]


PIECES = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<", "<|", "|im_end|>", "system\n", "hi ", "é"]
)


@settings(max_examples=50)
@given(st.lists(PIECES, min_size=1, max_size=8).map("".join))
def test_nobody_can_write_a_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """A prompt has as many as one of harmless texts, and a reply the end token at its end alone."""
    card = Card("c1", text, (text,), (text,))
    harmless = prompt_ids(tokenizer, Card("c1", "x", ("x",), ("x",)), said("x", "x", "x"), 10_000)
    found = prompt_ids(tokenizer, card, said(text, text, text), 10_000)
    for token in tokenizer.all_special_ids:
        assert found.count(token) == harmless.count(token)
    assert not set(reply_ids(tokenizer, text)[:-1]) & set(tokenizer.all_special_ids)
    if "<|im" not in text and "<|end" not in text:
        assert plain_text(tokenizer, text) == text


def test_the_oldest_turns_go_first(tokenizer: PreTrainedTokenizerBase) -> None:
    history = said("first " * 30, "second " * 30, "third")
    card_and_last = len(prompt_ids(tokenizer, CARD, said("third"), 10_000))
    messages = prompt_messages(tokenizer, CARD, history, card_and_last + 10)
    assert [message["content"] for message in messages[1:]] == ["third"]


def test_a_turn_that_is_too_long_loses_its_beginning_and_the_card_stays(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    long = " ".join(f"word{n}" for n in range(300)) + " and so?"
    alone = len(prompt_ids(tokenizer, CARD, said("x"), 10_000))
    limit = alone + 30
    ids = prompt_ids(tokenizer, CARD, said("earlier", "yes", long), limit)
    assert len(ids) <= limit
    text = tokenizer.decode(ids)
    assert "Never use emoji." in text
    assert text.index("Mira") < 60
    assert "and so?" in text
    assert "word0 " not in text


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=300), st.integers(20, 200))
def test_no_prompt_is_longer_than_its_limit(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int
) -> None:
    assert 0 < len(prompt_ids(tokenizer, CARD, said(text), limit)) <= limit
