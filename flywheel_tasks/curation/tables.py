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


class CurationError(ValueError):
    """Curation or splitting cannot go on; the message names the file and the rule."""
