"""A card and a history as the token ids that a policy or a reward model reads."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, cast
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card, Turn, in_first_user_turn

_log = logging.getLogger(__name__)
Kept = Literal["beginning", "end"]
_MARK = "OnlyTheSystemSaysThis"
_SYSTEM_ROLES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, bool]] = WeakKeyDictionary()


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


def fitting(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], max_tokens: int
) -> tuple[Card, list[dict[str, str]]]:
    """The card and as much of the newest history as a prompt shows.

    Args:
        tokenizer: with a chat template.
        card: the character.
        history: turns, the last one the user's.
        max_tokens: of the rendered prompt; whole turns are dropped from the oldest on. If the card and the last
            turn alone are too long, :func:`give_way` says what of them goes. What stands before the user's first turn,
            such as a greeting, goes only if the template refuses it.

    Returns:
        the card, perhaps with fewer parts, and the messages of the turns, their texts as :func:`plain_text` has them.

    Raises:
        ValueError: the history does not end with a user's turn.
        TemplateError: the tokenizer's template refuses these messages for another reason.
    """
    if not history or history[-1]["role"] != "user":
        raise ValueError("a history must end with a user's turn")
    system = _system(tokenizer, card)
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
        card, kept[0]["content"] = _last_turn(tokenizer, card, kept[0]["content"], max_tokens)
    return card, kept


def prompt_messages(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], max_tokens: int
) -> list[dict[str, str]]:
    """What :func:`fitting` leaves of a card and a history, the card where :func:`placed` puts it.

    Args and errors as there.
    """
    card, turns = fitting(tokenizer, card, history, max_tokens)
    return placed(tokenizer, [_system(tokenizer, card), *turns])


def _system(tokenizer: PreTrainedTokenizerBase, card: Card) -> dict[str, str]:
    return {"role": "system", "content": plain_text(tokenizer, card.system_prompt())}


def placed(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Messages as the tokenizer's template takes them.

    Where it refuses a system message, or leaves it out (the first Gemma models' does), its text goes where
    :func:`flywheel_tasks.chat.card.in_first_user_turn` puts it.

    Args:
        tokenizer: with a chat template.
        messages: perhaps with a system message at the beginning.
    """
    if not messages or messages[0]["role"] != "system" or _takes_system(tokenizer):
        return list(messages)
    return in_first_user_turn(messages[0]["content"], messages[1:])


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template shows a system message: tried once for each tokenizer and template."""
    template = tokenizer.chat_template
    known = _SYSTEM_ROLES.get(tokenizer)
    if known is None or known[0] != template:
        messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
        try:
            shown = _MARK in str(tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError:
            shown = False
        known = _SYSTEM_ROLES[tokenizer] = (template, shown)
    return known[1]


def give_way(
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    text: str,
    max_tokens: int,
    size: Callable[[Card, str], int],
) -> tuple[Card, str]:
    """What is shown of a card and of the user's last turn where both together are too long.

    The turn keeps at least half of the room, or all of itself: a reply to a message that is not there is wrong
    whatever the card says. Within that the card stays, and the turn's beginning goes. A card that leaves less loses
    whole parts (:meth:`flywheel_tasks.chat.card.Card.without`), and at last the end of its name.

    Args:
        tokenizer: counts tokens.
        card: the character.
        text: of the turn.
        max_tokens: of all that ``size`` counts.
        size: tokens of the prompt with a card and a text.

    Returns:
        the card, perhaps with fewer parts, and the text, perhaps without its beginning.
    """
    if size(card, text) <= max_tokens:
        return card, text
    room = max_tokens - size(Card(card.card_id, "", (), ()), "")
    ids = _tokens(tokenizer, text)
    least = text if len(ids) <= room // 2 else _decoded(tokenizer, ids[-max(1, room // 2) :], "end")
    parts = range(card.parts())
    lost = bisect_left(parts, True, key=lambda lost: size(card.without(lost), least) <= max_tokens)
    shown = card.without(lost)
    name = _cut(
        tokenizer, shown.name, lambda name: size(replace(shown, name=name), least) - max_tokens, "beginning"
    )
    shown = replace(shown, name=name)
    return shown, _cut(tokenizer, text, lambda text: size(shown, text) - max_tokens, "end")


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    over: Callable[[str], int],
    keep: Kept,
) -> str:
    """A text without its end or its beginning, until ``over`` finds no token too many; a token stays."""
    ids = _tokens(tokenizer, text)
    shown = text
    while len(ids) > 1 and (many := over(shown)) > 0:
        left = max(1, len(ids) - many)
        ids = ids[-left:] if keep == "end" else ids[:left]
        shown = _decoded(tokenizer, ids, keep)
    return shown


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], keep: Kept) -> str:
    text = str(tokenizer.decode(ids))
    half = "\N{REPLACEMENT CHARACTER} "  # a cut may fall inside a character
    return text.lstrip(half) if keep == "end" else text.rstrip(half)


def _last_turn(
    tokenizer: PreTrainedTokenizerBase, card: Card, text: str, max_tokens: int
) -> tuple[Card, str]:
    """:func:`give_way` in a prompt of the card and the user's last turn."""

    def size(card: Card, text: str) -> int:
        return len(_render(tokenizer, [_system(tokenizer, card), {"role": "user", "content": text}]))

    shown, kept = give_way(tokenizer, card, text, max_tokens, size)
    if shown != card:
        _warn(card.card_id, max_tokens)
    return shown, kept


@lru_cache(maxsize=1024)  # once for each card, not for each of its prompts
def _warn(card_id: str, max_tokens: int) -> None:
    _log.warning(
        "card %s leaves the user's turn less than half of %d tokens: its last parts are not shown",
        card_id,
        max_tokens,
    )


def cut_short(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[tuple[Card, Sequence[Turn]]],
    max_tokens: int | Sequence[int],
    limited_by: str = "prompt.max_tokens",
) -> dict[str, int]:
    """How many prompts do not show all of their card, or of the user's last turn; a warning says so, too.

    Args:
        tokenizer: with a chat template.
        prompts: cards and histories, the last turn the user's.
        max_tokens: as for :func:`prompt_messages`; of all prompts, or of each.
        limited_by: the settings that say it, for the warning.

    Returns:
        ``prompts``, ``card`` (those whose card lost a part) and ``last_turn`` (those whose turn lost its beginning).
    """
    prompts = list(prompts)
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
    found = {"prompts": len(prompts), "card": 0, "last_turn": 0}
    for (card, history), limit in zip(prompts, limits, strict=True):
        text = plain_text(tokenizer, history[-1]["content"])
        shown, kept = _last_turn(tokenizer, card, text, limit)
        found["card"] += shown != card
        found["last_turn"] += kept != text
    if found["card"] or found["last_turn"]:
        _log.warning(
            "of %d prompts, %d do not show all of their card and %d not all of the user's last turn: %s leaves too few "
            "tokens",
            *found.values(),
            limited_by,
        )
    return found


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    ids = tokenizer.apply_chat_template(
        placed(tokenizer, messages), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return cast(list[int], ids)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], max_tokens: int
) -> list[int]:
    """Token ids of a prompt, generation prompt included; only if the template's own words are too long, their beginning
    is cut.

    Args and errors as :func:`prompt_messages`.
    """
    return _render(tokenizer, prompt_messages(tokenizer, card, history, max_tokens))[-max_tokens:]


def reply_ids(tokenizer: PreTrainedTokenizerBase, reply: str) -> list[int]:
    """Token ids of a reply as the policy ends it: the text and the end-of-turn token."""
    return [*_tokens(tokenizer, plain_text(tokenizer, reply)), tokenizer.eos_token_id]
