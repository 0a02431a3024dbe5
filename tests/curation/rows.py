"""Rows of logs and prompts for the tests of curation."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 2, 10, tzinfo=UTC)


def message(
    conversation,
    number,
    role,
    text,
    parent=None,
    minutes=None,
    user="u1",
    card="c1",
    source="user",
    model="m",
):
    """A message; ``number`` orders it, ``parent`` is the number of what it answers."""
    return {
        "event_id": f"e-{conversation}-{number}",
        "time": START + timedelta(minutes=number if minutes is None else minutes),
        "source": source,
        "conversation_id": conversation,
        "message_id": f"{conversation}-{number}",
        "user_id": user,
        "card_id": card,
        "role": role,
        "text": text,
        "parent_id": None if parent is None else f"{conversation}-{parent}",
        "model": model if role == "assistant" else None,
    }


def signal(message_id, name, value=None, user="u1", source="user"):
    """A signal on a reply."""
    return {
        "event_id": f"s-{message_id}-{name}",
        "time": START,
        "source": source,
        "conversation_id": message_id.rsplit("-", 1)[0],
        "message_id": message_id,
        "user_id": user,
        "signal": name,
        "value": value,
    }


def card(card_id, name="Mae", hours=0, event="e"):
    """A version of a card."""
    return {
        "event_id": f"{event}-{card_id}",
        "time": START + timedelta(hours=hours),
        "source": "internal",
        "card_id": card_id,
        "name": name,
        "traits": ["dry"],
        "instructions": ["Never use emoji."],
    }


def prompt(prompt_id, text="Hi there.", user="u1", source="user", card_id="c1", reply="Hello.", before=()):
    """A row of the prompts table."""
    return {
        "prompt_id": prompt_id,
        "conversation_id": f"c-{prompt_id}",
        "user_id": user,
        "source": source,
        "card_id": card_id,
        "turn": 1,
        "history": [*before, {"role": "user", "content": text}],
        "reply": reply,
        "reply_model": "m",
        "signals": [],
    }
