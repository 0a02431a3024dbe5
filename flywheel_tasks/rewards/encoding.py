"""Prompts and replies as the token ids that reward models read.

Each encoding is a prompt and a continuation: continuations of one prompt share its computation
(:mod:`flywheel_tasks.rewards.packing`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.chat.prompt import give_way, plain_text, prompt_ids, reply_ids
from flywheel_tasks.storage.documents import read_json, write_json

Kind = Literal["pointwise", "pairwise"]
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class RewardModelError(ValueError):
    """A folder holds no reward model of the kind that is needed, or no backbone for one; the message names it."""


@dataclass(frozen=True)
class Limits:
    """How much a reward model reads.

    Attributes:
        kind: what the model compares.
        max_tokens: prompt and continuation together.
        prompt_max_tokens: the prompt; a pointwise model's is never more than three quarters of ``max_tokens``.
    """

    kind: Kind
    max_tokens: int
    prompt_max_tokens: int

    def save(self, folder: Path) -> None:
        """Write ``scorer.json`` beside the model."""
        write_json(self.__dict__, folder / "scorer.json")

    @classmethod
    def load(cls, folder: Path, kind: Kind | None = None) -> "Limits":
        """Read ``scorer.json``.

        Args:
            folder: of the model.
            kind: that is needed; by default either.

        Raises:
            RewardModelError: the folder holds no reward model, or one of another kind.
        """
        path = folder / "scorer.json"
        if not path.is_file():
            raise RewardModelError(f"{folder}: no reward model (scorer.json is missing)")
        found: Any = read_json(path)
        if not isinstance(found, dict) or set(found) != {field.name for field in fields(cls)}:
            raise RewardModelError(f"{path}: not the scorer.json of a reward model")
        if found["kind"] not in ((kind,) if kind else get_args(Kind)):
            needed = f"a {kind}" if kind else f"a {' or '.join(get_args(Kind))}"
            raise RewardModelError(f"{folder}: holds a {found['kind']} reward model, {needed} one is needed")
        return cls(**found)


def reward_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model: its padding token never ends a sequence.

    A sequence classifier scores the last token that is not padding. Where padding is also the end-of-turn
    token, as in chat models by custom, it would score the token before the end instead, so another special
    token pads.

    Args:
        folder: a model's folder.

    Raises:
        RewardModelError: the tokenizer has no special token left for padding.
    """
    tokenizer = dated_tokenizer(folder)
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    used = set(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)) | {
        tokenizer.eos_token_id
    }
    special = [
        token_id for token_id, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special
    ]
    free = [token_id for token_id in special if token_id not in used]
    if not free:
        raise RewardModelError(
            f"{folder}: no special token is free for padding (pad is the end-of-turn token)"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    return tokenizer


def encode_replies(
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    history: Sequence[Turn],
    replies: Sequence[str],
    limits: Limits,
) -> tuple[list[int], list[list[int]]]:
    """One prompt and its replies for a pointwise model.

    The prompt does not depend on the replies: rewards are compared between replies to one prompt, and must be of the
    same prompt whichever replies are encoded together. What it leaves of ``max_tokens`` is the replies' room. A reply
    that is too long for it is cut and still ends with the end-of-turn token.

    Returns:
        the prompt's ids, and each reply's ids.
    """
    most = min(limits.prompt_max_tokens, limits.max_tokens - limits.max_tokens // 4)
    prompt = prompt_ids(tokenizer, card, history, most)
    room = limits.max_tokens - len(prompt)
    return prompt, [_cut(reply_ids(tokenizer, reply), room) for reply in replies]


def at_limit(prompt: Sequence[int], reply: Sequence[int], limits: Limits) -> bool:
    """Whether an encoded reply ends at a pointwise model's limit: it was cut there, or just fits."""
    return len(prompt) + len(reply) >= limits.max_tokens


def _cut(reply: list[int], room: int) -> list[int]:
    return reply if len(reply) <= room else [*reply[: room - 1], reply[-1]]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _transcript(tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn]) -> str:
    names = {"user": "User", "assistant": card.name}
    lines = [f"{names[turn['role']]}: {turn['content']}" for turn in history]
    text = f"{card.system_prompt()}\n\nConversation:\n" + "\n".join(lines)
    return plain_text(tokenizer, text.replace(_MARK, ""))


def _frame(tokenizer: PreTrainedTokenizerBase, shown: str) -> tuple[list[int], list[int]]:
    """Tokens before and after the other reply of a comparison, given the conversation."""
    # Only the text around the mark is used: replies are put in as tokens and cannot be mistaken for it.
    message = f"{shown}\n\nA reply: {_MARK}\n\nWrite a better reply."
    messages = [{"role": "user", "content": message}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    head, tail = (_tokens(tokenizer, part) for part in text.split(_MARK))
    return head, tail


def _around(
    tokenizer: PreTrainedTokenizerBase, card: Card, history: Sequence[Turn], limits: Limits
) -> tuple[list[int], list[int]]:
    """:func:`_frame` of as much of the conversation as fits."""

    @cache
    def around(start: int) -> tuple[str, list[int], list[int]]:
        shown = _transcript(tokenizer, card, history[start:])
        return shown, *_frame(tokenizer, shown)

    tail = around(0)[2]
    most = max(1, limits.max_tokens - limits.max_tokens // 3 - len(tail) - 1)

    def fits(start: int) -> bool:
        shown, head, _ = around(start)
        return len(head) <= most and len(_tokens(tokenizer, shown)) <= limits.prompt_max_tokens

    # All is tried first, for it mostly fits; then by halves, for a head only gets shorter with each turn dropped.
    last = len(history) - 1
    start = 0 if fits(0) else bisect_left(range(last), True, min(1, last), key=fits)
    head = around(start)[1]
    if len(head) <= most:
        return head, tail

    def alone(card: Card, text: str) -> list[int]:  # only one turn is left
        return _frame(tokenizer, _transcript(tokenizer, card, [Turn(role="user", content=text)]))[0]

    text = plain_text(tokenizer, history[-1]["content"].replace(_MARK, ""))
    head = alone(*give_way(tokenizer, card, text, most, lambda card, text: len(alone(card, text))))
    return head[-most:], tail


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase,
    card: Card,
    history: Sequence[Turn],
    comparisons: Sequence[tuple[str, str]],
    limits: Limits,
) -> tuple[list[int], list[list[int]]]:
    """One prompt and its comparisons for a pairwise model: a reply is judged with another one in view.

    The conversation and the other reply are one user message of the chat template, so any template will do; the
    judged reply is the answer to "write a better reply", and the score is read where it ends, where a model
    trained to chat has just read that reply. Both replies have the same token limit, together a third of ``max_tokens``
    at least. The oldest turns give way until the conversation fits ``prompt_max_tokens`` and all that stands before
    the other reply fits the rest; then :func:`flywheel_tasks.chat.prompt.give_way` says what goes of the card
    and the last turn.

    Args:
        tokenizer: from :func:`reward_tokenizer`.
        card: the character.
        history: turns, the last one the user's.
        comparisons: (other reply, judged reply) of each.
        limits: of a pairwise model.

    Returns:
        the shared prompt's ids, and each comparison's ids.
    """
    head, tail = _around(tokenizer, card, history, limits)
    room = max(2, (limits.max_tokens - len(tail) - 1 - len(head)) // 2)
    return head, [
        [
            *_tokens(tokenizer, plain_text(tokenizer, other))[:room],
            *tail,
            *_cut(reply_ids(tokenizer, judged), room + 1),
        ]
        for other, judged in comparisons
    ]
