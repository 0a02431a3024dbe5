"""What supervised fine-tuning learns from: accepted replies and annotators' rewrites, as token ids."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.prompt import cut_short, prompt_ids, reply_ids
from flywheel_tasks.policy.prompts import Prompt, PromptError, card_from_context, prompt_of
from flywheel_tasks.policy.tool_calls import ToolCallError, parse
from flywheel_tasks.storage.tables import read_rows

IGNORED = -100  # label of tokens that are not learned


@dataclass(frozen=True)
class Example:
    """A reply to learn.

    Attributes:
        mix: source of the mixture: ``rejection_user``, ``rejection_internal``, ``rewrites`` or a named set.
        prompt: what it answers.
        reply: its text.
        rejected: a worse one that a named set has beside it; not learned here.
    """

    mix: str
    prompt: Prompt
    reply: str
    rejected: str | None = None


def load_examples(accepted: Path, rewrites: Path) -> list[Example]:
    """The mixture, sorted by part and prompt; what two annotators wrote alike for one prompt is one example.

    Args:
        accepted: table of rejection sampling.
        rewrites: table of annotators' rewrites; only those of purpose ``policy`` are used, because the others
            are data of the reward models, which judge this policy.

    Raises:
        PromptError: a reply is empty or a broken tool call, a row breaks a rule, or there are no rows at all.
    """
    found: dict[tuple[str, str, str], Example] = {}
    for path, column in ((accepted, "reply"), (rewrites, "rewrite")):
        for number, row in enumerate(read_rows(path)):
            where = f"{path}: row {number} (prompt {row['prompt_id']})"
            if column == "rewrite" and row["purpose"] != "policy":
                continue
            if not row[column] or not row[column].strip():
                raise PromptError(f"{where}: {column} is empty")
            try:
                parse(row[column])
            except ToolCallError as error:
                raise PromptError(f"{where}: {column}: {error}") from error
            prompt = prompt_of(row, card_from_context(row), where)
            mix = "rewrites" if column == "rewrite" else f"rejection_{prompt.source}"
            example = Example(mix, prompt, row[column].strip())
            found.setdefault((mix, prompt.prompt_id, example.reply), example)
    if not found:
        raise PromptError(f"{accepted} and {rewrites}: no reply to learn from")
    return [found[key] for key in sorted(found)]


def prompt_limit(replies: Iterable[Sequence[int]], prompt_tokens: int, max_tokens: int) -> int:
    """Most tokens of a prompt that is learned with replies: it gives way to the longest, but keeps half of the room.

    Args:
        replies: token ids of each.
        prompt_tokens: most tokens of any prompt.
        max_tokens: most tokens of prompt and reply together.
    """
    return min(prompt_tokens, max(max_tokens // 2, max_tokens - max(map(len, replies))))


def cut_short_by_replies(
    tokenizer: PreTrainedTokenizerBase,
    learned: Iterable[tuple[Hashable, tuple[Card, Sequence[Turn]], Sequence[str]]],
    prompt_tokens: int,
    max_tokens: int,
    section: str,
) -> dict[str, int]:
    """:func:`flywheel_tasks.chat.prompt.cut_short` of prompts that are learned, each counted once.

    Args:
        tokenizer: with a chat template.
        learned: name of a prompt, its card and history, and the replies that it gives way to; of several rows with one
            name the one with the longest reply counts.
        prompt_tokens: as for :func:`prompt_limit`.
        max_tokens: as there.
        section: of the settings that say ``max_tokens``, for the warning.
    """
    chats, limits = {}, dict[Hashable, int]()
    for name, chat, replies in learned:
        encoded = [reply_ids(tokenizer, reply) for reply in replies]
        limit = prompt_limit(encoded, prompt_tokens, max_tokens)
        chats[name], limits[name] = chat, min(limit, limits.get(name, limit))
    limited_by = f"prompt.max_tokens, or {section}.max_tokens beside the reply,"
    return cut_short(tokenizer, chats.values(), list(limits.values()), limited_by)


def encode(
    tokenizer: PreTrainedTokenizerBase, example: Example, prompt_tokens: int, max_tokens: int
) -> dict[str, list[int]]:
    """Token ids and labels of one example.

    The reply ends in the end token, which is learned too. Where padding is the same token, the labels tell
    them apart: this row has none of padding's.

    Args:
        tokenizer: with a chat template.
        example: prompt and reply.
        prompt_tokens: most tokens of the prompt.
        max_tokens: most tokens of both; the prompt gives way first (but keeps half), then the reply, which
            then has no end token, since it does not end there.

    Returns:
        ``input_ids`` and ``labels``, of the same length; the prompt's labels are ignored ones.
    """
    reply = reply_ids(tokenizer, example.reply)
    prompt = prompt_ids(tokenizer, *example.prompt.chat, prompt_limit([reply], prompt_tokens, max_tokens))
    reply = reply[: max_tokens - len(prompt)]
    return {"input_ids": [*prompt, *reply], "labels": [IGNORED] * len(prompt) + reply}


def lengths(rows: Sequence[dict[str, list[int]]]) -> list[int]:
    """Tokens of each row."""
    return [len(row["input_ids"]) for row in rows]
