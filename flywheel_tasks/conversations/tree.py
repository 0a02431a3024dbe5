"""The trees that messages form, for many conversations at once, as arrays of row numbers.

A conversation is a tree: every message answers its parent. Replies with one parent are *siblings* (regenerated or
edited); a user's message with an answered sibling is a branch that the user took back. Each message's history is the
path from the root to it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NONE = -1  # in an array of row numbers

Ints = np.ndarray
Bools = np.ndarray


@dataclass(frozen=True)
class Tree:
    """Where each message (row) stands.

    Attributes:
        conversation: number of the row's conversation, (rows,).
        parent: row that it answers, or NONE, (rows,).
        user: whether the user wrote it, (rows,).
        depth: messages on the path from the root to it, itself included; 0 in a conversation without order.
        turn: of these, the user's.
        replaces: row that it replaces, or NONE, (rows,).
        broken: reason by number of the conversation that has no order, and the row that shows it.
    """

    conversation: Ints
    parent: Ints
    user: Bools
    depth: Ints
    turn: Ints
    replaces: Ints
    broken: dict[int, tuple[str, int]]

    @property
    def good(self) -> Bools:
        """Rows of conversations that have an order."""
        bad = np.zeros(int(self.conversation.max(initial=-1)) + 1, bool)
        bad[list(self.broken)] = True
        return ~bad[self.conversation]


def _rows_of(ids: pa.Array, messages: pa.Array) -> Ints:
    """Row of each id, or NONE."""
    return pc.index_in(ids, value_set=messages).fill_null(NONE).to_numpy().astype(np.int64)


def _numbered(values: pa.Array) -> Ints:
    return values.dictionary_encode().indices.to_numpy().astype(np.int64)


def _paths(parent: Ints, user: Bools) -> tuple[Ints, Ints, Bools]:
    """Messages and user turns on each path to a root, and the rows whose path is a circle.

    Pointer doubling: after k rounds every row knows the sums over its next 2^k ancestors.
    """
    ancestor = np.where(parent >= 0, parent, np.arange(len(parent)))
    inner = parent >= 0
    depth, turn = inner.astype(np.int64), (inner & user).astype(np.int64)
    for _ in range(len(parent).bit_length() + 1):
        if not inner[ancestor].any():
            break
        depth, turn = depth + depth[ancestor], turn + turn[ancestor]
        ancestor = ancestor[ancestor]
    return depth + 1, turn + user[ancestor], inner[ancestor]


def _bad_replacements(replaces: Ints, named: Bools, conversation: Ints, parent: Ints, user: Bools) -> Bools:
    """Rows that replace something they cannot replace."""
    same = (
        (conversation[replaces] == conversation)
        & (parent[replaces] == parent)
        & (user[replaces] == user)
        & (replaces != np.arange(len(replaces)))
    )
    return named & ~((replaces >= 0) & same)


def plant(messages: pa.Table) -> Tree:
    """Find every message's place.

    Args:
        messages: rows of the messages table, whole conversations, sorted by conversation, time and message id.
    """
    column = {name: messages[name].combine_chunks() for name in messages.column_names}
    ids = column["message_id"]
    conversation = _numbered(column["conversation_id"])
    user = pc.equal(column["role"], "user").to_numpy(zero_copy_only=False)
    rows, count = np.arange(len(user)), int(conversation.max(initial=-1)) + 1

    answers = pc.is_valid(column["parent_id"]).to_numpy(zero_copy_only=False)
    parent = _rows_of(column["parent_id"], ids)
    missing = answers & ((parent < 0) | (conversation[parent] != conversation))
    parent[missing] = NONE
    named = pc.is_valid(column["replaces"]).to_numpy(zero_copy_only=False)
    depth, turn, circular = _paths(parent, user)

    replaces = _rows_of(column["replaces"], ids)
    roots = (parent < 0) & ~missing
    first_roots = roots & ~named
    number_of_roots = np.bincount(conversation[first_roots], minlength=count)[conversation]
    faults = {
        "repeated_message_id": _repeated(ids),
        "missing_parent": missing,
        "cycle": circular,
        "no_root": roots & (number_of_roots == 0),
        "two_roots": first_roots & (number_of_roots > 1),
        "bad_replacement": _bad_replacements(replaces, named, conversation, parent, user),
    }
    broken: dict[int, tuple[str, int]] = {}
    for reason, at in faults.items():
        for row in rows[at]:
            broken.setdefault(int(conversation[row]), (reason, int(row)))
    tree = Tree(conversation, parent, user, depth, turn, replaces, broken)
    depth[~tree.good] = 0
    return tree


def _repeated(ids: pa.Array) -> Bools:
    """Rows whose id another row has too."""
    number = _numbered(ids)
    return np.bincount(number)[number] > 1 if len(number) else np.zeros(0, bool)


def histories(tree: Tree, ends: Ints, longest: int) -> tuple[Ints, Ints]:
    """The paths that end with some rows, without their oldest messages where they are too long.

    Args:
        tree: of the messages.
        ends: last row of each path, (paths,).
        longest: messages that a path keeps.

    Returns:
        offsets of the paths, (paths + 1,), and the rows of all paths one after another.
    """
    lengths = np.minimum(tree.depth[ends], longest)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.empty(int(offsets[-1]), np.int64)
    at, row, left = offsets[1:] - 1, ends, lengths
    while len(row):
        rows[at] = row
        more = left > 1
        at, row, left = at[more] - 1, tree.parent[row[more]], left[more] - 1
    return offsets, rows


def path_sums(tree: Tree, ends: Ints, longest: int, values: Ints) -> Ints:
    """Sums of a number of each message over the paths that :func:`histories` gives, (paths,).

    Args:
        tree: of the messages.
        ends: last row of each path, (paths,).
        longest: messages that a path keeps.
        values: a number of each message, (rows,).
    """
    total = np.zeros(len(ends), np.int64)
    at, row, left = np.arange(len(ends)), ends, np.minimum(tree.depth[ends], longest)
    while len(row):
        total[at] += values[row]
        more = left > 1
        at, row, left = at[more], tree.parent[row[more]], left[more] - 1
    return total
