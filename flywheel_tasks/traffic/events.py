"""One raw log line to one typed event, or to the name of the rule that it breaks.

The format is described in ``docs/raw-logs.md``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from flywheel_tasks.settings import SIGNALS
from flywheel_tasks.storage.documents import json_flaw
from flywheel_tasks.traffic.schemas import SOURCES

ROLES = ("user", "assistant")

# Kinds of fields: "id" is a string that is not empty, "text" any string, "text?" a string or null or absent,
# "strings" a list of strings; a tuple lists the allowed strings after the name of the rule for any other.
Kind = str | tuple[str, tuple[str, ...]]
_EVENT: dict[str, Kind] = {"event_id": "id", "time": "time", "source": ("unknown_source", SOURCES)}
_FIELDS: dict[str, dict[str, Kind]] = {
    "card": {
        "card_id": "id",
        "name": "text",
        "traits": "strings",
        "instructions": "strings",
        "greeting": "text?",
    },
    "message": {
        "conversation_id": "id",
        "message_id": "id",
        "user_id": "id",
        "card_id": "id",
        "role": ("unknown_role", ROLES),
        "text": "text",
        "parent_id": "text?",
        "model": "text?",
        "replaces": "text?",
    },
    "signal": {
        "conversation_id": "id",
        "message_id": "id",
        "user_id": "id",
        "signal": ("unknown_signal", SIGNALS),
        "value": "text?",
    },
    "exposure": {"user_id": "id", "experiment": "id", "arm": "id"},
}
# Fields of each type, those that all have first.
FIELDS: dict[str, dict[str, Kind]] = {kind: _EVENT | fields for kind, fields in _FIELDS.items()}
TYPES = tuple(FIELDS)
TABLE_OF = {"card": "cards", "message": "messages", "signal": "signals", "exposure": "exposures"}

RULES = {
    "line_too_long": "the line has more bytes than the setting ingest.max_line_bytes",
    "empty_line": "the line is blank",
    "not_json": "the line is not one JSON value in UTF-8",
    "not_object": "the line is JSON, but not an object",
    "missing_field": "a required field is absent",
    "wrong_type": "a field has another JSON type than it should",
    "empty_field": "an id is the empty string",
    "unknown_type": f"type is none of {', '.join(TYPES)}",
    "unknown_source": f"source is none of {', '.join(SOURCES)}",
    "unknown_role": f"role is none of {', '.join(ROLES)}",
    "unknown_signal": f"signal is none of {', '.join(SIGNALS)}",
    "bad_time": "time is not ISO 8601 with a time zone",
    "truncated_gzip": "the gzip file ends early; its whole lines are kept, the rest counts as one line",
    "conflicting_duplicate": "another event has the same event_id and other content; the first one is kept",
}


class EventError(ValueError):
    """A line breaks a rule.

    Attributes:
        rule: a key of :data:`RULES`.
        detail: what was found, for people; it may quote a value.
        unquoted: the same without the value.
    """

    def __init__(self, rule: str, detail: str, unquoted: str | None = None) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail
        self.unquoted = detail if unquoted is None else unquoted


@dataclass(frozen=True)
class Event:
    """A parsed event.

    Attributes:
        type: card, message, signal or exposure.
        row: its row in the table of that type (``time`` as an aware datetime in UTC).
        unknown: names of fields that the format does not have and that are not null; they are left out of ``row``.
        renamed: old names of fields that were taken under their new one.
    """

    type: str
    row: dict[str, Any]
    unknown: tuple[str, ...]
    renamed: tuple[str, ...] = ()


_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}", re.ASCII)
# One word, a time, or what a time is told as that Python has no value for.
_WORD = re.compile(r"[\w.:+-]{1,40}|[\d :.,/+TZ-]{1,40}|-?\d+ [a-z]+ since 1970", re.ASCII)
_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}


def is_name(field: str) -> bool:
    """Whether a field is called as fields are, and not by what somebody said."""
    return _NAME.fullmatch(field) is not None


def _shown(value: Any) -> str:
    """A value in an error: one word or a time as it is; of the rest, which may be what somebody said, the type."""
    if isinstance(value, str):
        return f'"{value}"' if _WORD.fullmatch(value) else f"a string of {len(value)} characters"
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _quoting(rule: str, before: str, value: Any, after: str = "") -> EventError:
    return EventError(rule, f"{before} {_shown(value)}{after}", f"{before} …{after}")


def _time(name: str, value: str) -> datetime:
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _quoting("bad_time", name, value, " is no ISO 8601 time") from error
    raise _quoting("bad_time", name, value, " has no time zone")


def _value(name: str, kind: Kind, value: Any) -> Any:
    if kind == "time" and isinstance(value, str):
        return _time(name, value)
    if kind == "strings":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _quoting("wrong_type", f"{name} must be a list of strings, not", value)
        return value
    if kind == "text?" and value is None:
        return None
    if not isinstance(value, str):
        iso = " (ISO 8601 with a time zone)" if kind == "time" else ""
        raise EventError("wrong_type", f"{name} must be a string{iso}, not {_shown(value)}")
    if isinstance(kind, tuple):
        rule, allowed = kind
        if value not in allowed:
            raise _quoting(rule, name, value, f" is none of {', '.join(allowed)}")
    elif kind == "id" and not value:
        raise EventError("empty_field", f"{name} is empty")
    return value


def renamed(event: Mapping[str, Any], rename: Mapping[str, str]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """An event with old names replaced where the new field has no value, and these old names."""
    used = tuple(old for old, new in rename.items() if event.get(old) is not None and event.get(new) is None)
    if not used:
        return event, ()
    null = {rename[old] for old in used}
    names = {name: rename[name] if name in used else name for name in event if name not in null}
    return {new: event[old] for old, new in names.items()}, used


def parse_event(event: Mapping[str, Any], rename: Mapping[str, str] | None = None) -> Event:
    """Check one decoded event.

    Args:
        event: the JSON object.
        rename: old field names to new ones; an old one counts where the new one is absent or null.

    Raises:
        EventError: it breaks a rule.
    """
    event, old_names = renamed(event, rename or {})
    if "type" not in event:
        raise EventError("missing_field", f"type is absent: it is one of {', '.join(TYPES)}")
    kind = event["type"]
    if not isinstance(kind, str):
        raise _quoting("wrong_type", "type must be a string, not", kind)
    if kind not in FIELDS:
        raise _quoting("unknown_type", "type", kind, f" is none of {', '.join(TYPES)}")
    fields = FIELDS[kind]
    absent = [name for name, of in fields.items() if name not in event and of != "text?"]
    if absent:
        raise EventError("missing_field", f"{', '.join(absent)} absent from this {kind}")
    row = {name: _value(name, of, event.get(name)) for name, of in fields.items()}
    extra = set(event) - set(fields) - {"type"}
    return Event(kind, row, tuple(sorted(name for name in extra if event[name] is not None)), old_names)


def decode_line(line: bytes) -> dict[str, Any]:
    """The JSON object of one line.

    Args:
        line: its bytes, with or without the line end.

    Raises:
        EventError: it holds none.
    """
    if not line.strip():
        raise EventError("empty_line", "the line is blank")
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise EventError("not_json", json_flaw(error)) from error
    if not isinstance(event, dict):
        raise EventError("not_object", f"found {_shown(event)}", f"found a {type(event).__name__}")
    return event


def parse_line(line: bytes, rename: Mapping[str, str] | None = None) -> Event:
    """Parse one line of a log.

    Args:
        line: its bytes, with or without the line end.
        rename: as for :func:`parse_event`.

    Raises:
        EventError: it breaks a rule.
    """
    return parse_event(decode_line(line), rename)
