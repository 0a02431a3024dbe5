"""Cards and turns that people write in files: each field is held to its type before anything is made of it.

A text where a list of texts belongs would otherwise become a list of its letters.
"""

from typing import Any

from flywheel_tasks.chat.card import Card, Turn


class FieldError(ValueError):
    """A field has not its type; the message is ``rule: what is wrong``, the caller adds file and row."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(f"{rule}: {problem}")


def id_of(raw: Any) -> str | int:
    """An id as a person gives one: a text that is not empty, or a whole number.

    Args:
        raw: of the file.

    Raises:
        FieldError: it is neither.
    """
    if isinstance(raw, bool) or not isinstance(raw, str | int) or raw == "":
        raise FieldError("id", "a text or a whole number must be there")
    return raw


def card_of(raw: Any, card_id: str) -> Card:
    """A card from an object with ``name``, ``traits`` and ``instructions``; a list that is absent or null has nothing.

    Args:
        raw: of the file.
        card_id: its id.

    Raises:
        FieldError: a field has not its type, or the name is blank.
    """
    if not isinstance(raw, dict):
        raise FieldError("card", "an object with name, traits and instructions must be there")
    if not isinstance(raw.get("name"), str) or not raw["name"].strip():
        raise FieldError("card.name", "a text must be there")
    lists: dict[str, tuple[str, ...]] = {}
    for key in ("traits", "instructions"):
        value = raw.get(key)
        if value is not None and (
            not isinstance(value, list) or not all(isinstance(item, str) for item in value)
        ):
            raise FieldError(f"card.{key}", "must be a list of texts")
        lists[key] = tuple(value or ())
    return Card(card_id, raw["name"], lists["traits"], lists["instructions"])


def turns_of(raw: Any) -> tuple[Turn, ...]:
    """Turns from a list of ``role`` and ``content``; null has none.

    Args:
        raw: of the file.

    Raises:
        FieldError: it is no such list, a role is neither user nor assistant, or a content is no text.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise FieldError("history", "must be a list of turns")
    turns: list[Turn] = []
    for place, turn in enumerate(raw):
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
            raise FieldError("history.role", f"turn {place}: role must be user or assistant")
        if not isinstance(turn.get("content"), str):
            raise FieldError("history.content", f"turn {place}: a text must be there")
        turns.append({"role": turn["role"], "content": turn["content"]})
    return tuple(turns)
