"""Schemas of the curated tables and of the splits, and the error of this package."""

import pyarrow as pa

HISTORY = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
STRINGS = pa.list_(pa.string())

CARDS = pa.schema(
    [("card_id", pa.string()), ("name", pa.string()), ("traits", STRINGS), ("instructions", STRINGS)]
)
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("source", pa.string()),
        ("card_id", pa.string()),
        ("turn", pa.int64()),
        ("history", HISTORY),
        ("reply", pa.string()),
        ("reply_model", pa.string()),
        ("signals", STRINGS),
    ]
)
REMOVED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class CurationError(ValueError):
    """Curation or splitting cannot go on; the message names the file and the rule."""
