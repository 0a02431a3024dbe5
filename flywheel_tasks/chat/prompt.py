"""A card and a history as the token ids that a policy or a reward model reads."""

import logging
from collections.abc import Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card, Turn

_log = logging.getLogger(__name__)


def plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text in which no control token of a model is spelled out any more: a space stands after its first character.

    A tokenizer reads ``<|im_end|>`` in what a person wrote as the real token: they could end their own turn, begin the
    system's, or teach a policy to go on after its end.

    Args:
        tokenizer: whose control tokens count.
        text: of a user, a card, a reply.
    """
    for token in tokenizer.added_tokens_decoder.values():
        spelled = token.content
        if token.special and len(spelled) > 1 and spelled in text:
            text = text.replace(spelled, f"{spelled[0]} {spelled[1:]}")
    return text


def prompt_messages(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], max_tokens: int
) -> list[dict[str, str]]:
    """System prompt and as much of the newest history as fits.

    Args:
        tokenizer: with a chat template.
        card: the character.
        history: turns, the last one the user's.
        max_tokens: of the rendered prompt; whole turns are dropped from the oldest on. If the card and the last
            turn alone are too long, the turn's beginning goes: the card must stay, or its rules cannot be kept. What
            stands before the user's first turn, such as a greeting, goes only if the template refuses it.

    Returns:
        messages for a chat template, their texts as :func:`plain_text` has them.

    Raises:
        ValueError: the history does not end with a user's turn.
        TemplateError: the tokenizer's template refuses these messages for another reason.
    """
    if not history or history[-1]["role"] != "user":
        raise ValueError("a history must end with a user's turn")
    system = {"role": "system", "content": plain_text(tokenizer, card.system_prompt())}
    kept = [{"role": turn["role"], "content": plain_text(tokenizer, turn["content"])} for turn in history]
    # Where it may begin: the first place that fits, else the last one. All is tried first, for it mostly fits; then by
    # halves, for a prompt only gets shorter with each turn dropped, and to render a long one for each takes minutes.
    starts, at = list(range(len(kept))), 0
    while len(starts) > 1:
        try:
            fits = len(_render(tokenizer, [system, *kept[starts[at] :]])) <= max_tokens
            starts = starts[: at + 1] if fits else starts[at + 1 :]
            at = (len(starts) - 1) // 2
        except TemplateError:
            if kept[starts[at]]["role"] == "user":
                raise
            del starts[at]
            at = min(at, len(starts) - 2)
    kept = kept[starts[0] :]
    if len(kept) == 1:  # more turns would not be left if they did not fit
        kept[0]["content"] = _shortened(tokenizer, system, kept[-1]["content"], max_tokens)
    return [system, *kept]


def _shortened(tokenizer: PreTrainedTokenizerBase, system: dict[str, str], text: str, max_tokens: int) -> str:
    """The user's text, or its end where card and text together are too long."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = text
    while (
        ids
        and (over := len(_render(tokenizer, [system, {"role": "user", "content": shown}])) - max_tokens) > 0
    ):
        ids = ids[over:]
        # A cut may fall inside a character.
        shown = str(tokenizer.decode(ids)).lstrip("\N{REPLACEMENT CHARACTER} ")
    return shown


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    ids = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return cast(list[int], ids)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], max_tokens: int
) -> list[int]:
    """Token ids of a prompt, generation prompt included; a card that alone is too long loses its beginning.

    Args and errors as :func:`prompt_messages`.
    """
    ids = _render(tokenizer, prompt_messages(tokenizer, card, history, max_tokens))
    if len(ids) > max_tokens:
        _log.warning("card %s alone has more than %d tokens; its beginning is cut", card.card_id, max_tokens)
    return ids[-max_tokens:]


def reply_ids(tokenizer: PreTrainedTokenizerBase, reply: str) -> list[int]:
    """Token ids of a reply as the policy ends it: the text and the end-of-turn token."""
    ids: list[int] = tokenizer(plain_text(tokenizer, reply), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]
