"""Conversations that go on from before the logs that a generation reads.

A generation reads the newest days; people go on with one conversation for weeks. What such a conversation answers first
is then not there, and without more ado every later message of it would have lost its parent. So it begins with its
earliest message: the history of its turns is shorter, as that of long conversations is anyway.
"""

from pathlib import Path

import numpy as np

from flywheel_tasks.contracts.sql import ROW, Database

# Rows are in the order of time. A conversation with a first message of its own has lost what it lacks; in the others,
# the earliest message tells what they went on from. If that is in the logs, times or ids are wrong, and the contracts
# say so.
_BEGINNINGS = f"""
CREATE TEMP TABLE beginnings AS WITH begun AS (
    SELECT conversation_id, arg_min(parent_id, {ROW}) AS parent FROM messages
    GROUP BY conversation_id HAVING count(parent_id) = count(*)
),
gone AS (SELECT begun.* FROM begun ANTI JOIN messages ON messages.message_id = begun.parent)
SELECT m.{ROW}, m.conversation_id FROM messages m
JOIN gone ON m.conversation_id = gone.conversation_id AND m.parent_id = gone.parent
"""  # noqa: S608


def beginnings(messages: Path, scratch: Path, memory_mb: int) -> tuple[np.ndarray, int]:
    """The earliest messages of conversations that began before the logs.

    Args:
        messages: Parquet file of the ingested messages.
        scratch: folder for what does not fit into memory.
        memory_mb: bound of the table engine (MB).

    Returns:
        their row numbers, sorted, and the number of these conversations.
    """
    with Database(scratch, memory_mb) as database:
        database.attach("messages", messages)
        database.run(_BEGINNINGS)
        found = [batch.column(0).to_numpy() for batch in database.batches(f"SELECT {ROW} FROM beginnings")]  # noqa: S608
        (conversations,) = database.one("SELECT count(DISTINCT conversation_id) FROM beginnings")
    return np.sort(np.concatenate([np.empty(0, np.int64), *found])), conversations
