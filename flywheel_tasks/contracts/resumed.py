"""Conversations that go on from before the logs that a generation reads.

A generation reads the newest days; people go on with one conversation for weeks. What such a conversation answers first
is then not there, and without more ado every later message of it would have lost its parent. So it begins with a
message whose parent is not there, the one that most of its messages come from: the history of its turns is shorter, as
that of long conversations is anyway. What begins elsewhere (a branch, what came late from before) has lost its parent.
"""

from pathlib import Path

import numpy as np

from flywheel_tasks.contracts.sql import ROW, Cleared, Database

_ABSENT, _ROOT = -1, -2  # instead of a parent's row

# A conversation with a first message of its own has lost what else it lacks: the contracts say so.
_BEGUN = """
CREATE TEMP TABLE begun AS SELECT row_number() OVER (ORDER BY conversation_id) - 1 AS number, conversation_id
FROM messages GROUP BY conversation_id HAVING count(parent_id) = count(*)
"""
_LINKS = f"""
SELECT m.{ROW}, begun.number, coalesce(p.{ROW}, {_ABSENT}) FROM messages m
JOIN begun ON m.conversation_id = begun.conversation_id LEFT JOIN messages p ON p.message_id = m.parent_id
"""  # noqa: S608


def beginnings(messages: Path, scratch: Path, memory_mb: int) -> Cleared:
    """The messages with which conversations from before the logs begin, without what they answer or replace.

    Args:
        messages: Parquet file of the ingested messages, sorted by time.
        scratch: folder for what does not fit into memory.
        memory_mb: bound of the table engine (MB).

    Returns:
        one row a conversation. One in which no parent is absent (they lead in a circle, or elsewhere) has none.
    """
    with Database(scratch, memory_mb) as database:
        database.attach("messages", messages)
        database.run(_BEGUN)
        (size,) = database.one("SELECT count(*) FROM messages")
        conversation, parent = np.full(size, -1, np.int32), np.full(size, _ROOT, np.int64)
        for batch in database.batches(_LINKS):
            rows, numbers, parents = (batch.column(k).to_numpy() for k in range(3))
            conversation[rows] = numbers
            np.maximum.at(parent, rows, parents)  # an id that is there twice goes with both its rows
    roots = np.flatnonzero(parent == _ABSENT)
    sizes = np.bincount(_ends(parent), minlength=size)[roots]
    order = np.lexsort((roots, -sizes, conversation[roots]))  # of trees of one size the earliest
    first = np.diff(conversation[roots[order]], prepend=-1) > 0
    return Cleared(("parent_id", "replaces"), np.sort(roots[order][first]))


def _ends(parent: np.ndarray) -> np.ndarray:
    """The row at the end of each row's chain of parents; of a circle, some row of it."""
    end = np.where(parent >= 0, parent, np.arange(len(parent)))
    for _ in range(len(parent).bit_length()):
        further = end[end]
        if np.array_equal(further, end):
            break
        end = further
    return end
