"""Raw log events (docs/raw-logs.md) of what happened at the gateway."""

import secrets
from datetime import UTC, datetime
from typing import Any

from flywheel_tasks.serving.turns import LoggedTurn

Event = dict[str, Any]
_ID_BYTES, _AT_ONCE = 12, 256
_ready: list[bytes] = []


def _fresh() -> bytes:
    """Random bytes; asked of the kernel for many ids at once."""
    try:
        return _ready.pop()
    except IndexError:
        block = secrets.token_bytes(_ID_BYTES * _AT_ONCE)
        _ready.extend(block[n : n + _ID_BYTES] for n in range(_ID_BYTES, len(block), _ID_BYTES))
        return block[:_ID_BYTES]


def new_id(kind: str) -> str:
    """A fresh id; ``kind`` is its prefix."""
    return f"{kind}-{_fresh().hex()}"


def stamp(time: datetime) -> str:
    """ISO 8601 in UTC, to the microsecond."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def message_event(
    turn: LoggedTurn, text: str, *, user_id: str, card_id: str, source: str, model: str | None, **more: Any
) -> Event:
    """A ``message`` event of a turn.

    Args:
        turn: its ids, role and time.
        text: what was said.
        user_id: whose conversation it is.
        card_id: the character.
        source: internal or user.
        model: the policy that wrote it, or None.
        more: fields beyond the format (ingestion counts them by name); None is left out.
    """
    return {
        "event_id": f"e-{turn.message_id}",
        "type": "message",
        "time": stamp(turn.time),
        "source": source,
        "conversation_id": turn.conversation_id,
        "message_id": turn.message_id,
        "user_id": user_id,
        "card_id": card_id,
        "role": "user" if turn.role == "user" else "assistant",
        "text": text,
        "parent_id": turn.parent_id,
        "model": model,
        **{name: value for name, value in more.items() if value is not None},
    }


def exposure_event(*, user_id: str, source: str, experiment: str, arm: str, time: datetime) -> Event:
    """An ``exposure`` event."""
    return {
        "event_id": new_id("x"),
        "type": "exposure",
        "time": stamp(time),
        "source": source,
        "user_id": user_id,
        "experiment": experiment,
        "arm": arm,
    }


def signal_event(
    turn: LoggedTurn, signal: str, value: str | None, *, user_id: str, source: str, time: datetime
) -> Event:
    """A ``signal`` event on a reply."""
    return {
        "event_id": new_id("s"),
        "type": "signal",
        "time": stamp(time),
        "source": source,
        "conversation_id": turn.conversation_id,
        "message_id": turn.message_id,
        "user_id": user_id,
        "signal": signal,
        "value": value,
    }
