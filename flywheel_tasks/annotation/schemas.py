"""Arrow schemas of the preference tables."""

import pyarrow as pa

_STRINGS = pa.list_(pa.string())
_CONTEXT = [
    ("prompt_id", pa.string()),
    ("user_id", pa.string()),
    ("source", pa.string()),
    ("purpose", pa.string()),
    ("card_id", pa.string()),
    ("card_name", pa.string()),
    ("traits", _STRINGS),
    ("instructions", _STRINGS),
    ("history", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
]

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        *_CONTEXT,
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("kind", pa.string()),
        ("agreement", pa.float64()),
    ]
)
REWRITES = pa.schema([*_CONTEXT, ("rejected", pa.string()), ("rewrite", pa.string())])
REMOVED = pa.schema([("pair_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
