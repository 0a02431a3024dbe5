"""Logged messages to prompts: every history that ends with a user's turn, with the reply that it got."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flywheel_tasks.curation.tables import CurationError
from flywheel_tasks.settings import SIGNALS

Row = Mapping[str, Any]


@dataclass
class _Asked:
    """A user's message, the history up to it, and its replies in the order of the log."""

    message: Row
    history: list[dict[str, str]]
    replies: list[Row] = field(default_factory=list)
    continued: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Assembled:
    """What the messages became.

    Attributes:
        prompts: rows as in ``prompts.parquet``, in the order of the log.
        times: time of each prompt's user message, by prompt id.
        counts: messages and signals by what became of them.
    """

    prompts: list[dict[str, Any]]
    times: dict[str, datetime]
    counts: dict[str, int]


def newest_cards(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """The newest version of each card, sorted by id; of versions with one time the last event id wins."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["card_id"], r["time"], r["event_id"])):
        found[row["card_id"]] = {key: row[key] for key in ("card_id", "name", "traits", "instructions")}
    return found


def _in_order(messages: Sequence[Row]) -> list[Row]:
    """Messages by time; of the same moment, what is answered before what answers it."""
    parents = {message["message_id"]: message["parent_id"] for message in messages}
    depths: dict[str, int] = {}
    for message in messages:
        chain = [message["message_id"]]
        while (parent := parents.get(chain[-1])) is not None and parent not in chain:
            chain.append(parent)
        depths[chain[0]] = len(chain)
    return sorted(messages, key=lambda row: (row["time"], depths[row["message_id"]], row["message_id"]))


def _answered(asked: _Asked, message: Row) -> Row | None:
    """The sibling that a user's next message answers: the one it names, else the last."""
    named = [reply for reply in asked.replies if reply["message_id"] == message["parent_id"]]
    return named[0] if named else asked.replies[-1] if asked.replies else None


def _thread(messages: Sequence[Row], window: timedelta) -> tuple[list[_Asked], int]:
    """One conversation's user turns, and the number of replies whose user message is not there."""
    asked: list[_Asked] = []
    by_id: dict[str, _Asked] = {}
    opening: list[dict[str, str]] = []  # a character may speak first
    orphans = 0
    for message in messages:
        if message["role"] == "assistant":
            home = by_id.get(message["parent_id"]) if message["parent_id"] else (asked[-1] if asked else None)
            if home is not None:
                home.replies.append(message)
            elif message["parent_id"] is None:
                opening.append({"role": "assistant", "content": message["text"]})
            else:
                orphans += 1
            continue
        history = [*asked[-1].history] if asked else [*opening]
        reply = _answered(asked[-1], message) if asked else None
        if asked and reply is not None:
            history.append({"role": "assistant", "content": reply["text"]})
            if message["time"] - reply["time"] <= window:
                asked[-1].continued.add(reply["message_id"])
        history.append({"role": "user", "content": message["text"]})
        asked.append(_Asked(message, history))
        by_id[message["message_id"]] = asked[-1]
    return asked, orphans


def _prompt(asked: _Asked, given: Mapping[str, set[str]]) -> dict[str, Any]:
    """The row of a prompt; its reply is the first sibling: a regeneration counts against what caused it."""
    message, reply = asked.message, asked.replies[0] if asked.replies else None
    signals = set() if reply is None else set(given.get(reply["message_id"], ()))
    if reply is not None and reply["message_id"] in asked.continued:
        signals.add("continue")
    return {
        "prompt_id": message["message_id"],
        "conversation_id": message["conversation_id"],
        "user_id": message["user_id"],
        "source": message["source"],
        "card_id": message["card_id"],
        "turn": sum(turn["role"] == "user" for turn in asked.history),
        "history": asked.history,
        "reply": None if reply is None else reply["text"],
        "reply_model": None if reply is None else reply["model"],
        "signals": [name for name in SIGNALS if name in signals],
    }


def assemble(messages: Iterable[Row], signals: Iterable[Row], continue_window_minutes: int) -> Assembled:
    """Conversations to prompts.

    A regenerated reply is a sibling (same parent). The prompt keeps the first sibling and its signals; the
    history goes on with the sibling that the user answered. ``continue`` is added where the user answered the
    reply in time.

    Args:
        messages: rows of the messages table.
        signals: rows of the signals table.
        continue_window_minutes: longest time between a reply and the user's answer that counts as going on.

    Raises:
        CurationError: a message id occurs twice.
    """
    given: dict[str, set[str]] = defaultdict(set)
    given_count = 0
    for signal in signals:
        given[signal["message_id"]].add(signal["signal"])
        given_count += 1
    by_conversation: dict[str, list[Row]] = defaultdict(list)
    for message in messages:
        by_conversation[message["conversation_id"]].append(message)
    counts: Counter[str] = Counter(conversations=len(by_conversation), signals=given_count)
    prompts: dict[str, dict[str, Any]] = {}
    times: dict[str, datetime] = {}
    for conversation in sorted(by_conversation):
        rows = _in_order(by_conversation[conversation])
        asked, orphans = _thread(rows, timedelta(minutes=continue_window_minutes))
        counts.update(messages=len(rows), orphan_replies=orphans)
        for item in asked:
            prompt = _prompt(item, given)
            if prompt["prompt_id"] in prompts:
                raise CurationError(f"messages.parquet: message_id {prompt['prompt_id']} occurs twice")
            prompts[prompt["prompt_id"]], times[prompt["prompt_id"]] = prompt, item.message["time"]
            counts.update(replies=len(item.replies), regenerated=max(len(item.replies) - 1, 0))
    counts.update(prompts=len(prompts), unanswered=sum(row["reply"] is None for row in prompts.values()))
    ordered = sorted(
        prompts.values(), key=lambda row: (times[row["prompt_id"]], row["turn"], row["prompt_id"])
    )
    return Assembled(ordered, times, dict(counts))
