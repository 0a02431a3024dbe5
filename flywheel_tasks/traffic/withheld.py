"""What is kept of a refused line whose user cannot be told: nobody could find it again, and so not forget them.

A logger that writes ``author`` for ``user_id`` has every line refused, and each of them holds an id and words.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from flywheel_tasks.traffic.events import FIELDS, EventError, is_name, renamed
from flywheel_tasks.traffic.identity import Masked, user_fields
from flywheel_tasks.traffic.schemas import RAW_CHARACTERS

MARK = "…"
# What loggers write for an id where there is none.
_NOBODY = frozenset({"", "null", "none", "nil", "undefined", "nan"})
# The values of the others (the user's id, texts, a signal's value, fields that the format does not have) are withheld.
KEPT = frozenset({
    "event_id", "type", "time", "source", "conversation_id", "message_id", "card_id", "role", "parent_id", "model",
    "replaces", "signal", "experiment", "arm",
})  # fmt: skip
# One word in ASCII without an @, or a time: whatever else stands in such a field is none of what it is for.
_IDENTIFIER = re.compile(r"[!-?A-~]{1,128}|\d[\d:.+TZ -]{1,40}")


def kept_of(
    found: Masked, error: EventError, event: Mapping[str, Any] | None, rename: Mapping[str, str]
) -> tuple[str, str]:
    """What the quarantine keeps of a refused line: ``raw`` and ``detail``, which still holds ids that it quotes.

    Args:
        found: the line, masked.
        error: why it is refused.
        event: the line, decoded; None if it is no JSON object, or only the start of one.
        rename: old field names to new ones.
    """
    if event is None:
        return "", error.unquoted
    if _is_nobodys(event, rename) or (found.users and _tells_user(event, user_fields(rename))):
        return found.text[:RAW_CHARACTERS], error.detail
    return _without_values(event, rename)[:RAW_CHARACTERS], error.unquoted


def _tells_user(event: Mapping[str, Any], fields: Collection[str]) -> bool:
    """Whether an event says whose it is, as the format has it: what is deeper in it may be somebody else's."""
    values = [event.get(name) for name in fields]
    return any(
        (isinstance(value, str) and value.strip().lower() not in _NOBODY)
        or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    )


def _is_nobodys(event: Mapping[str, Any], rename: Mapping[str, str]) -> bool:
    """Whether an event is of a type that has no user."""
    kind = renamed(event, rename)[0].get("type")
    return isinstance(kind, str) and kind in FIELDS and "user_id" not in FIELDS[kind]


def _without_values(event: Mapping[str, Any], rename: Mapping[str, str]) -> str:
    """An event as JSON with the names of its fields, and with the values of the format's identifiers only."""

    def shown(name: str, value: Any) -> Any:
        fine = isinstance(value, int | float) or (isinstance(value, str) and _IDENTIFIER.fullmatch(value))
        return value if value is None or (fine and rename.get(name, name) in KEPT) else MARK

    named = {name: shown(name, value) for name, value in event.items() if is_name(name)}
    if others := len(event) - len(named):
        named[f"{others} more"] = MARK  # what is no name may be what somebody said, too
    return orjson.dumps(named).decode()
