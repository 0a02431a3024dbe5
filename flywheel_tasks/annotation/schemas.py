"""Arrow schemas of the preference tables (docs/annotation.md)."""

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
_REVIEWED = [("reviews", pa.int64()), ("simulated", pa.bool_())]

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        *_CONTEXT,
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("kind", pa.string()),
        ("agreement", pa.float64()),
        *_REVIEWED,
        ("consensus", pa.bool_()),  # good enough to measure with; the others are to train on
        # What one review, drawn without a look at it, says of the pair: 1 as chosen, 0 the other way, 1/2 equal. Null
        # for a rewrite, which nobody ranks.
        ("one_review", pa.float64()),
        ("chosen_policy", pa.string()),  # null for a text that an annotator wrote
        ("rejected_policy", pa.string()),
    ]
)
REWRITES = pa.schema([*_CONTEXT, ("rejected", pa.string()), ("rewrite", pa.string()), *_REVIEWED])
REMOVED = pa.schema([("pair_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
ITEMS = pa.schema(
    [
        ("task_id", pa.string()),
        ("kind", pa.string()),
        ("purpose", pa.string()),
        ("reviews", pa.int64()),
        ("ranking_agreement", pa.float64()),
        ("answer_agreement", pa.float64()),
    ]
)
ANNOTATORS = pa.schema(
    [
        ("annotator", pa.string()),
        ("simulated", pa.bool_()),
        ("labels", pa.int64()),
        ("decisions", pa.int64()),
        ("agreement", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("gold_items", pa.int64()),
        ("gold_accuracy", pa.float64()),
        ("gold_low", pa.float64()),
        ("gold_high", pa.float64()),
        ("flagged", pa.bool_()),
        ("flagged_by", pa.list_(pa.string())),
    ]
)
