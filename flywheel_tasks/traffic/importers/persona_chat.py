"""Conversations between two personas to cards and messages of a log."""

import csv
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from flywheel_tasks.traffic.importers.rows import (
    Imported,
    ImportFormatError,
    RowError,
    SkippedRow,
    card_event,
    file_mark,
    short_hash,
    stamp,
    text_field,
)

PERSONA_COLUMNS = ("user 1 personas", "user 2 personas", "Best Generated Conversation")

_PERSONA_TURN = re.compile(r"(User [12]):(.*)", re.DOTALL)
# The set has no times: conversations are laid out one after another from a given day.
_BETWEEN_CONVERSATIONS = timedelta(minutes=10)
_BETWEEN_MESSAGES = timedelta(seconds=10)


def _persona_turns(text: str) -> list[tuple[str, str]]:
    """Speaker and text of each turn; a line without a speaker, or of the same one, goes on with the turn."""
    turns: list[tuple[str, str]] = []
    for line in filter(str.strip, text.splitlines()):
        match = _PERSONA_TURN.fullmatch(line.strip())
        speaker, said = (
            (match[1], match[2].strip()) if match else (turns[-1][0] if turns else "", line.strip())
        )
        if not speaker:
            raise RowError("no_speaker", f"the conversation starts with {line[:60]!r}")
        if turns and turns[-1][0] == speaker:
            turns[-1] = (speaker, f"{turns[-1][1]}\n{said}".strip())
        else:
            turns.append((speaker, said))
    if len(turns) < 2:
        raise RowError("no_dialogue", "fewer than two turns")
    if not all(said for _, said in turns):
        raise RowError("empty_turn", "a turn says nothing")
    return turns


def _persona_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if absent := [name for name in PERSONA_COLUMNS if name not in (reader.fieldnames or ())]:
                raise ImportFormatError(f"{path}: line 1 has no column {', '.join(absent)}")
            begins = reader.line_num + 1
            for row in reader:
                yield begins, row
                begins = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImportFormatError(f"{path}: not CSV in UTF-8: {error}") from error


def _persona_messages(
    turns: list[tuple[str, str]], conversation: str, card_id: str, begin: datetime, source: str
) -> Iterator[dict[str, Any]]:
    parent = None
    for number, (speaker, said) in enumerate(turns):
        message_id = f"{conversation}-{number:03d}"
        is_user = speaker == turns[0][0]
        yield {
            "event_id": f"message-{message_id}",
            "type": "message",
            "time": stamp(begin + (number + 1) * _BETWEEN_MESSAGES),
            "source": source,
            "conversation_id": conversation,
            "message_id": message_id,
            "user_id": f"{conversation}-user",
            "card_id": card_id,
            "role": "user" if is_user else "assistant",
            "text": said,
            "parent_id": parent,
            "model": None if is_user else "synthetic-persona-chat",
        }
        parent = message_id


def read_persona_chat(path: Path, *, start: date, source: str) -> Imported:
    """Read Synthetic-Persona-Chat (Jandaghi et al., arXiv 2312.10007): two personas and a conversation a row.

    Who speaks first becomes the user; the other one's persona becomes the card. The set has no times: they
    are made up, one conversation every ten minutes from ``start`` on.

    Args:
        path: the CSV.
        start: day of the first conversation.
        source: ``internal`` or ``user``.

    Returns:
        card and message events.

    Raises:
        ImportFormatError: not a CSV with these columns.
    """
    events: list[dict[str, Any]] = []
    skipped: list[SkippedRow] = []
    cards: set[str] = set()
    day, mark = datetime.combine(start, time(), UTC), file_mark(path)
    for number, (line, row) in enumerate(_persona_rows(path)):
        try:
            turns = _persona_turns(text_field(row, PERSONA_COLUMNS[2]))
            character = 1 if turns[0][0] == "User 1" else 0
            traits = [
                item.strip()
                for item in text_field(row, PERSONA_COLUMNS[character]).splitlines()
                if item.strip()
            ]
            if not traits:
                raise RowError("no_persona", f"{PERSONA_COLUMNS[character]} is empty")
        except RowError as error:
            skipped.append(SkippedRow(str(path), line, *error.args))
            continue
        begin = day + number * _BETWEEN_CONVERSATIONS
        card_id = "persona-" + short_hash(*traits)
        if card_id not in cards:
            cards.add(card_id)
            events.append(card_event(card_id, f"Persona {card_id[-6:]}", traits, [], begin, source, mark))
        events += _persona_messages(turns, f"persona-chat-{mark}-{number:05d}", card_id, begin, source)
    return Imported(events, skipped, mark)
