"""Characters of a role-play benchmark to card events of a log."""

import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from flywheel_tasks.traffic.importers.rows import (
    Imported,
    RowError,
    SkippedRow,
    card_event,
    file_mark,
    read_objects,
    text_field,
)


def _optional(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError("wrong_type", f"{key} is neither a string nor null")
    return (value or "").strip()


def _rpbench_card(row: dict[str, Any], mark: str) -> tuple[str, str, list[str], list[str]]:
    profile = row.get("npc_profile")
    if not isinstance(profile, dict) or not isinstance(row.get("id"), int):
        raise RowError("missing_field", "id is not a number or npc_profile is not an object")
    name = text_field(profile, "name_text").strip()
    if not name:
        raise RowError("no_name", "name_text is empty")
    phrases = _optional(profile, "short_definition_text") or _optional(profile, "title")
    traits = [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]
    descriptions = [_optional(profile, key) for key in ("description", "long_definition_text")]
    traits += sorted(filter(None, descriptions), key=len)[:1]  # the shorter one says the same
    if not traits:
        raise RowError("no_definition", f"{name} has neither title nor description")
    sentences = re.split(r"(?<=[.!?])\s+", _optional(row, "background"))
    rules = [item for item in sentences if item and not item.startswith("You are role-playing")]
    filled = [item.replace("{{char}}", name).replace("{{user}}", "the user").strip() for item in traits]
    return f"rpbench-{mark}-{row['id']:04d}", name, filled, rules


def read_rpbench(path: Path, *, start: date, source: str) -> Imported:
    """Read the characters of RPBench-Auto (``characters.jsonl``).

    Args:
        path: the file.
        start: day from which the cards count.
        source: ``internal`` or ``user``.

    Returns:
        card events: title phrases and a description as traits, the background's rules as instructions.
    """
    events: dict[str, dict[str, Any]] = {}
    skipped: list[SkippedRow] = []
    mark = file_mark(path)
    for number, row in read_objects(path, skipped):
        try:
            card_id, name, traits, rules = _rpbench_card(row, mark)
            if card_id in events:
                raise RowError("repeated_id", f"an earlier line has id {row['id']}")
        except RowError as error:
            skipped.append(SkippedRow(str(path), number, *error.args))
            continue
        events[card_id] = card_event(
            card_id, name, traits, rules, datetime.combine(start, time(), UTC), source, mark
        )
    return Imported(list(events.values()), skipped, mark)
