"""Arrow schemas of the tables that raw logs become (in ``data/ingested`` and ``data/validated``)."""

import pyarrow as pa

# Whose words a gateway's refusal is: no policy's, so it is no reply to learn from. An unknown policy is null.
REFUSAL_MODEL = "gateway:refusal"
SOURCES = ("internal", "user")
TIME = pa.timestamp("us", tz="UTC")
_EVENT = [("event_id", pa.string()), ("time", TIME), ("source", pa.string())]
_STRINGS = pa.list_(pa.string())

CARDS = pa.schema(
    [
        *_EVENT,
        ("card_id", pa.string()),
        ("name", pa.string()),
        ("traits", _STRINGS),
        ("instructions", _STRINGS),
        ("greeting", pa.string()),
    ]
)
MESSAGES = pa.schema(
    [
        *_EVENT,
        ("conversation_id", pa.string()),
        ("message_id", pa.string()),
        ("user_id", pa.string()),
        ("card_id", pa.string()),
        ("role", pa.string()),
        ("text", pa.string()),
        ("parent_id", pa.string()),
        ("model", pa.string()),
        ("replaces", pa.string()),
    ]
)
SIGNALS = pa.schema(
    [
        *_EVENT,
        ("conversation_id", pa.string()),
        ("message_id", pa.string()),
        ("user_id", pa.string()),
        ("signal", pa.string()),
        ("value", pa.string()),
    ]
)
EXPOSURES = pa.schema(
    [
        *_EVENT,
        ("user_id", pa.string()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "cards": CARDS,
    "messages": MESSAGES,
    "signals": SIGNALS,
    "exposures": EXPOSURES,
}

# Lines that became no row: where, under which rule, why, the start of the line itself, and the users whom it names
# (hashes; also those that stand behind the start).
INGEST_QUARANTINE = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("rule", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),
        ("user_ids", _STRINGS),
    ]
)
RAW_CHARACTERS = 2_000  # of the line itself that are kept

# Where every accepted event was read, so that a later stage can still name file and line.
ORIGINS = pa.schema([("event_id", pa.string()), ("file", pa.string()), ("line", pa.int64())])

# Rows that broke a data contract.
VALIDATION_QUARANTINE = pa.schema(
    [
        ("table", pa.string()),
        ("event_id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("rule", pa.string()),
        ("detail", pa.string()),
    ]
)
