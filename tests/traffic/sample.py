"""A small log, by hand: a card, a conversation with a regenerated reply, signals, an exposure."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

Event = dict[str, Any]


def message(number: int, role: str, parent: int | None, **changes: Any) -> Event:
    return {
        "event_id": f"e-m{number}",
        "type": "message",
        "time": f"2026-11-02T10:{number:02d}:00Z",
        "source": "user",
        "conversation_id": "c1",
        "message_id": f"m{number}",
        "user_id": "u1",
        "card_id": "card-1",
        "role": role,
        "text": f"text {number}",
        "parent_id": None if parent is None else f"m{parent}",
        "model": "base" if role == "assistant" else None,
        "replaces": None,
        **changes,
    }


def card(**changes: Any) -> Event:
    return {
        "event_id": "e-card",
        "type": "card",
        "time": "2026-11-02T09:00:00Z",
        "source": "internal",
        "card_id": "card-1",
        "name": "Mira",
        "traits": ["a lighthouse keeper", "dry humour"],
        "instructions": ["Never use emoji."],
        **changes,
    }


def signal(number: int, about: int, **changes: Any) -> Event:
    return {
        "event_id": f"e-s{number}",
        "type": "signal",
        "time": f"2026-11-02T10:{30 + number}:00Z",
        "source": "user",
        "conversation_id": "c1",
        "message_id": f"m{about}",
        "user_id": "u1",
        "signal": "thumb_up",
        "value": None,
        **changes,
    }


def exposure(**changes: Any) -> Event:
    return {
        "event_id": "e-x1",
        "type": "exposure",
        "time": "2026-11-02T10:00:00Z",
        "source": "user",
        "user_id": "u1",
        "experiment": "g0001",
        "arm": "control",
        **changes,
    }


def events() -> list[Event]:
    return [
        card(),
        exposure(),
        message(1, "user", None),
        message(2, "assistant", 1),
        message(3, "assistant", 1),
        message(4, "user", 3),
        message(5, "assistant", 4),
        signal(1, 2, signal="regenerate"),
        signal(2, 5),
    ]


def line(event: Event) -> bytes:
    return orjson.dumps(event) + b"\n"


def write_log(root: Path, lines: Iterable[bytes], name: str = "date=2026-11-02/part-000.jsonl") -> Path:
    path = root / "data" / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(lines)
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def damaged_parquet(path: Path, rows: list[Event], compression: str = "snappy") -> None:
    """A Parquet file with a whole footer and pages of which bytes are others."""
    pq.write_table(pa.Table.from_pylist(rows), path, compression=compression, use_dictionary=False)
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) // 2, 37):
        data[at] ^= 0xFF
    path.write_bytes(data)
