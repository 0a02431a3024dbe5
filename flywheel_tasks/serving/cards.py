"""The characters that are served: card events of a JSON Lines file, or a table of cards; the newest version counts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.chat.card import Card
from flywheel_tasks.serving.events import Event, stamp
from flywheel_tasks.settings import Serve
from flywheel_tasks.traffic.events import EventError, parse_line

_MOST_CHARACTERS_OF_A_NAME = 200


class CardsError(ValueError):
    """There are no cards to serve, or one is wrong; the message names file, row and rule."""


@dataclass(frozen=True)
class Cards:
    """The characters, and the events that tell the logs about them.

    Attributes:
        by_id: newest version of each.
        events: the card event of each, by card id.
    """

    by_id: Mapping[str, Card]
    events: Mapping[str, Event]


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                event = parse_line(line)
            except EventError as error:
                raise CardsError(f"{path}:{number}: {error}") from error
            if event.type == "card":
                yield number, event.row


def _table(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from flywheel_tasks.storage.tables import read_rows
    from flywheel_tasks.traffic.drift import optional
    from flywheel_tasks.traffic.schemas import CARDS

    needed = [name for name in CARDS.names if name not in optional("card")]
    for number, row in enumerate(read_rows(path), start=1):
        if absent := [name for name in needed if row.get(name) is None]:
            raise CardsError(f"{path}: row {number}: {', '.join(absent)} absent: this is no table of cards")
        yield number, row


def _event(row: Mapping[str, Any]) -> Event:
    time: datetime = row["time"]
    kept = {name: row[name] for name in ("event_id", "source", "card_id", "name")}
    lists = {name: list(row[name]) for name in ("traits", "instructions")}
    greeting = {"greeting": row["greeting"]} if row.get("greeting") is not None else {}
    return {"type": "card", "time": stamp(time), **kept, **lists, **greeting}


def _newest(rows: Iterable[tuple[int, Mapping[str, Any]]], path: Path) -> dict[str, Mapping[str, Any]]:
    newest: dict[str, Mapping[str, Any]] = {}
    for number, row in rows:
        if not row["name"].strip() or len(row["name"]) > _MOST_CHARACTERS_OF_A_NAME:
            raise CardsError(
                f"{path}: row {number}: the name of {row['card_id']} is blank or over 200 characters"
            )
        before = newest.get(row["card_id"])
        if before is None or (row["time"], row["event_id"]) > (before["time"], before["event_id"]):
            newest[row["card_id"]] = row
    return newest


def load_cards(path: Path) -> Cards:
    """Read the characters.

    Args:
        path: ``.jsonl`` with ``card`` events of the raw log format (others are passed over), or ``.parquet``
            with the columns of the cards table, such as ``data/validated/cards.parquet``.

    Raises:
        CardsError: there is no such file, it has no card, or a row breaks a rule.
    """
    if not path.is_file():
        raise CardsError(f"{path}: there is no such file of cards (setting serve.cards)")
    newest = _newest(_table(path) if path.suffix == ".parquet" else _lines(path), path)
    if not newest:
        raise CardsError(f"{path}: holds no card (setting serve.cards)")
    ordered = sorted(newest.values(), key=lambda row: (row["name"], row["card_id"]))
    return Cards(
        by_id={row["card_id"]: Card.from_row(row) for row in ordered},
        events={row["card_id"]: _event(row) for row in ordered},
    )


def greeting_of(card: Card, serve: Serve) -> str | None:
    """What anybody may begin a conversation with: none where models are not told it, or it is too long to be sent."""
    told = serve.backend == "local" or serve.upstream.greetings
    fits = card.greeting is not None and len(card.greeting) <= serve.max_message_characters
    return card.greeting if told and fits else None


def card_lines(cards: Cards) -> list[bytes]:
    """The events as lines of a log; equal ones, written again, count as repeated."""
    return [orjson.dumps(event) for event in cards.events.values()]
