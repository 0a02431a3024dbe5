"""Schemas of the curated tables and of the splits, and the error of this package."""

import pyarrow as pa

from flywheel_tasks.conversations.schemas import CARDS as CARDS
from flywheel_tasks.conversations.schemas import PROMPTS as PROMPTS

REMOVED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("conversation_id", pa.string()),
        ("user_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

# Each dropped duplicate beside the prompt that it repeats; texts are shortened.
DUPLICATES = pa.schema(
    [
        ("kind", pa.string()),
        ("dropped_id", pa.string()),
        ("kept_id", pa.string()),
        ("cosine", pa.float64()),
        ("cluster", pa.int64()),
        ("across_clusters", pa.bool_()),
        ("dropped_text", pa.string()),
        ("kept_text", pa.string()),
    ]
)
CLUSTERS = pa.schema(
    [
        ("cluster", pa.int64()),
        ("prompts", pa.int64()),
        ("pruned", pa.int64()),
        ("pruned_share", pa.float64()),
    ]
)
# Prompts of each value of each dimension: in the raw traffic, that could be drawn, wanted, drawn.
SAMPLE = pa.schema(
    [
        ("dimension", pa.string()),
        ("value", pa.string()),
        ("raw", pa.int64()),
        ("available", pa.int64()),
        ("target", pa.int64()),
        ("achieved", pa.int64()),
    ]
)


class CurationError(ValueError):
    """Curation or splitting cannot go on; the message names the file and the rule."""
