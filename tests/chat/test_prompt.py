from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flywheel_tasks.chat import prompt as prompt_module
from flywheel_tasks.chat.card import Card, Turn, user_first
from flywheel_tasks.chat.prompt import cut_short, plain_text, prompt_ids, prompt_messages, reply_ids

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


USER_FIRST = (
    "{% for m in messages %}{% if loop.index0 == 1 and m.role != 'user' %}"
    "{{ raise_exception('users begin') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("template", [None, USER_FIRST])
def test_a_greeting_goes_only_where_the_template_refuses_it(tiny_models: Path, template: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    tokenizer.chat_template = template or tokenizer.chat_template
    history: list[Turn] = [{"role": "assistant", "content": "Ahoy!"}, *said("Hello.", "Hi!", "How are you?")]
    shown = [m["content"] for m in prompt_messages(tokenizer, CARD, history, 500)[1:]]
    assert shown == ["Ahoy!", "Hello.", "Hi!", "How are you?"][1 if template else 0 :]
    # When the oldest turn has to go, an answer to it comes first.
    limit = len(prompt_ids(tokenizer, CARD, history, 500)) - 1
    cut: list[Turn] = said("first " * 30, "Hi!", "How are you?")
    shown = [m["content"] for m in prompt_messages(tokenizer, CARD, cut, limit)[1:]]
    assert shown == (["How are you?"] if template else ["Hi!", "How are you?"])


def one_by_one(tokenizer: PreTrainedTokenizerBase, history: list[Turn], limit: int) -> list[str]:
    """What is kept when turns are dropped one after the other until the rest fits."""
    kept = history
    while len(kept) > 1:
        try:
            if len(prompt_module._render(tokenizer, _messages(kept))) <= limit:
                break
            kept = kept[1:]
        except TemplateError:
            assert len(user_first(kept)) < len(kept)
            kept = user_first(kept)
    return [turn["content"] for turn in kept]


def _messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [{"role": "system", "content": CARD.system_prompt()}, *({**turn} for turn in turns)]


TURNS = st.lists(st.text("ab é🌊\n", max_size=40), min_size=0, max_size=24)


@pytest.mark.parametrize("model", ["base", "talker"])
@pytest.mark.parametrize("template", [None, USER_FIRST])
def test_as_many_turns_go_as_if_they_went_one_by_one(
    tiny_models: Path, model: str, template: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / model)
    tokenizer.chat_template = template or tokenizer.chat_template
    alone = len(prompt_ids(tokenizer, CARD, said("x"), 10_000))

    @settings(max_examples=60, deadline=None)
    @given(TURNS, st.integers(0, 300))
    def check(texts: list[str], room: int) -> None:
        turns = said(*texts, "and so?") if len(texts) % 2 == 0 else said("", *texts, "and so?")[1:]
        limit = alone + 8 + room
        messages = prompt_messages(tokenizer, CARD, turns, limit)
        assert [message["content"] for message in messages[1:]] == one_by_one(tokenizer, turns, limit)
        ids = prompt_module._render(tokenizer, messages)
        assert prompt_ids(tokenizer, CARD, turns, limit) == ids[-limit:]

    check()


@pytest.mark.parametrize("template", [None, USER_FIRST])
def test_a_long_history_is_rendered_a_few_times_only(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    tokenizer.chat_template = template or tokenizer.chat_template
    render, lengths = prompt_module._render, []

    def counted(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
        lengths.append(len(messages))
        return render(tokenizer, messages)

    monkeypatch.setattr(prompt_module, "_render", counted)
    prompt_ids(tokenizer, CARD, said(*(f"turn {n}" for n in range(401))), 150)
    assert sum(lengths) < 4 * 401


def test_what_a_template_refuses_for_another_reason_is_an_error(tiny_models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(TemplateError, match="no"):
        prompt_messages(tokenizer, CARD, said("Hello.", "Hi!", "How are you?"), 500)


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


RULES = tuple(f"Rule {n}: greet everyone by the sea that they come from." for n in range(8))
LONG_CARD = Card("long", "Ann", ("patient", "retired", "fond of riddles"), RULES)


def test_a_card_that_leaves_no_room_loses_its_last_parts_and_the_user_is_heard(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    whole = len(prompt_ids(tokenizer, LONG_CARD, said("I lost my job."), 10_000))
    for limit in (whole - 1, whole // 2):
        system, user = prompt_messages(tokenizer, LONG_CARD, said("earlier", "yes", "I lost my job."), limit)
        assert user["content"] == "I lost my job."
        assert len(prompt_ids(tokenizer, LONG_CARD, said("I lost my job."), limit)) <= limit
        assert "fond of riddles" not in system["content"]  # traits go before rules, the last first
    assert "Traits" not in system["content"]
    assert RULES[0] in system["content"]
    assert RULES[-1] not in system["content"]
    lines = [
        line for line in caplog.messages if line.startswith("card long ") and f"{whole // 2} tokens" in line
    ]
    assert len(lines) == 1  # not one a prompt


@pytest.mark.parametrize("card", [LONG_CARD, Card("named", "Ann of the old harbour " * 40, (), ())])
def test_a_long_turn_keeps_half_of_the_room(tokenizer: PreTrainedTokenizerBase, card: Card) -> None:
    text = " ".join(f"word{n}" for n in range(300)) + " and so?"
    empty = len(prompt_ids(tokenizer, Card("", "", (), ()), said(""), 10_000))
    system, user = prompt_messages(tokenizer, card, said(text), empty + 80)
    assert len(prompt_ids(tokenizer, card, said(text), empty + 80)) <= empty + 80
    assert 40 <= len(tokenizer(user["content"])["input_ids"]) <= 80
    assert user["content"].endswith("and so?")
    assert system["content"].startswith("You are Ann")


def test_prompts_that_lose_something_are_counted(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    long = said(" ".join(f"word{n}" for n in range(300)))
    asked = [(CARD, said("Hi.")), (LONG_CARD, said("Hi.")), (CARD, long)]
    limit = len(prompt_ids(tokenizer, CARD, said("Hi."), 10_000)) + 20
    assert cut_short(tokenizer, asked, limit) == {"prompts": 3, "card": 1, "last_turn": 1}
    assert sum(line.startswith("of 3 prompts, 1 do not show") for line in caplog.messages) == 1
    caplog.clear()
    assert cut_short(tokenizer, asked[:1], limit) == {"prompts": 1, "card": 0, "last_turn": 0}
    assert not caplog.messages


NO_SYSTEM = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
SILENT = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT])
def test_where_a_template_has_no_system_role_the_card_is_in_the_first_user_turn(
    tiny_models: Path, template: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    tokenizer.chat_template = template
    history: list[Turn] = [{"role": "assistant", "content": "Ahoy!"}, *said("Hello.", "Hi!", "How are you?")]
    shown = prompt_messages(tokenizer, CARD, history, 500)
    first = {"role": "user", "content": f"{CARD.system_prompt()}\n\nHello."}
    assert shown == [*([history[0]] if template == SILENT else []), first, *history[2:]]
    assert tokenizer.decode(prompt_ids(tokenizer, CARD, history, 500)).count("Never use emoji.") == 1
    limit = len(prompt_ids(tokenizer, CARD, said("How are you?"), 500))
    assert prompt_messages(tokenizer, CARD, history, limit) == [
        {"role": "user", "content": f"{CARD.system_prompt()}\n\nHow are you?"}
    ]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert prompt_messages(tokenizer, CARD, said("Hello."), 500)[0]["role"] == "system"


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=300), st.integers(20, 200))
def test_no_prompt_is_longer_than_its_limit(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int
) -> None:
    assert 0 < len(prompt_ids(tokenizer, CARD, said(text), limit)) <= limit
