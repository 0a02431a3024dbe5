"""Events of many conversations to prompts, pairs of siblings and problems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel_tasks.conversations.schemas import PROBLEMS, SIBLINGS, STRINGS, TIMED_PROMPTS, TURNS
from flywheel_tasks.conversations.tree import NONE, Bools, Ints, Tree, histories, path_sums, plant
from flywheel_tasks.settings import SIGNALS
from flywheel_tasks.traffic.schemas import REFUSAL_MODEL

_SLICE_MESSAGES = 100_000  # messages of histories made at once
_SLICE_BYTES = 1 << 25  # of their texts; one history may have more
_AHEAD_BYTES = 1 << 26  # of histories that a group holds before they are asked for
_CONTINUE = 1 << SIGNALS.index("continue")
# Names of the signals of every combination, in the order of SIGNALS; the row number's bits say which.
_NAMES = pa.array(
    [[name for k, name in enumerate(SIGNALS) if bits >> k & 1] for bits in range(1 << len(SIGNALS))], STRINGS
)


class _Slices:
    """Tables with histories. Every history repeats the ones before, so only the first tables are made at once.

    Args:
        make: the table of some rows.
        parts: the rows of each table, and the bytes of their histories.
    """

    def __init__(self, make: Callable[[Ints], pa.Table], parts: Sequence[tuple[Ints, int]]) -> None:
        ahead = int(np.searchsorted(np.cumsum([size for _, size in parts]), _AHEAD_BYTES))
        self._make = make
        self._made = [make(rows) for rows, _ in parts[:ahead]]
        self._left = [rows for rows, _ in parts[ahead:]]

    def __iter__(self) -> Iterator[pa.Table]:
        yield from self._made
        yield from map(self._make, self._left)


@dataclass
class Group:
    """What the events of some conversations became.

    Attributes:
        prompts: slices of the prompts table, in the order of conversation, time and id.
        siblings: of the siblings table.
        problems: of the problems table.
        counts: events by what became of them.
    """

    prompts: Iterable[pa.Table] = ()
    siblings: Iterable[pa.Table] = ()
    problems: list[pa.Table] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def _histories(tree: Tree, messages: pa.Table, ends: Ints, longest: int) -> pa.Array:
    offsets, rows = histories(tree, ends, longest)
    said = messages.select(["role", "text"]).take(pa.array(rows)).combine_chunks()
    columns = [said[name].combine_chunks() for name in ("role", "text")]
    turns = pa.StructArray.from_arrays(columns, fields=list(TURNS.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), turns, type=TURNS)


class _Assembly:
    """One group of conversations: its messages as rows, its signals."""

    def __init__(self, messages: pa.Table, signals: pa.Table, window: timedelta, longest: int) -> None:
        self.messages, self.signals, self.longest = messages.combine_chunks(), signals, longest
        self.tree = plant(self.messages)
        self.size = pc.binary_length(self.messages["text"]).fill_null(0).to_numpy().astype(np.int64)
        self.good = self.tree.good
        tree, rows = self.tree, np.arange(messages.num_rows)
        self.answers = np.flatnonzero(tree.user & (tree.parent >= 0) & self.good)  # user turns after a reply
        asked = (tree.parent >= 0) & tree.user[tree.parent]
        refusals = pc.equal(self.messages["model"], REFUSAL_MODEL).fill_null(False)
        self.refusals = refusals.to_numpy().astype(bool) & ~tree.user & self.good
        self.replies = np.flatnonzero(~tree.user & asked & self.good & ~self.refusals)
        # Rows are in the order of time, so the first reply of a prompt is the first row.
        self.first_reply = np.full(len(rows), NONE)
        self.first_reply[tree.parent[self.replies][::-1]] = self.replies[::-1]
        self.last_answer = np.full(len(rows), NONE)
        np.maximum.at(self.last_answer, tree.parent[self.answers], self.answers)
        self.signal_row, self.signal_used = self._place_signals()
        self.bits = self._bits(window)

    def _place_signals(self) -> tuple[Ints, Bools]:
        """Message row of each signal, and whether it is there, in an ordered conversation of the same id."""
        row = pc.index_in(self.signals["message_id"], value_set=self.messages["message_id"])
        at = row.fill_null(NONE).to_numpy().astype(np.int64)
        if not self.messages.num_rows:
            return at, np.zeros(len(at), bool)
        said_in = self.messages["conversation_id"].take(pa.array(np.maximum(at, 0)))
        same = pc.equal(said_in, self.signals["conversation_id"]).to_numpy()
        return at, (at >= 0) & same & self.good[at]

    def _bits(self, window: timedelta) -> Ints:
        """Signals of each message, one bit a name; ``continue`` where the user answered in time."""
        bits = np.zeros(self.messages.num_rows, np.int64)
        names = pc.index_in(self.signals["signal"], value_set=pa.array(SIGNALS)).to_numpy()
        used = self.signal_used
        np.bitwise_or.at(bits, self.signal_row[used], np.int64(1) << names[used].astype(np.int64))
        time = self.messages["time"].cast(pa.int64()).to_numpy()
        waited = time[self.answers] - time[self.tree.parent[self.answers]]
        in_time = self.answers[waited <= int(window.total_seconds() * 1_000_000)]
        continued = self.tree.parent[in_time]
        bits[continued[~self.tree.user[continued]]] |= _CONTINUE
        return bits

    def _parts(self, ends: Ints) -> list[tuple[Ints, int]]:
        """Numbers of paths in parts whose histories stay small, and the bytes of these."""
        if not len(ends):
            return []
        messages = np.cumsum(np.minimum(self.tree.depth[ends], self.longest)) // _SLICE_MESSAGES
        size = path_sums(self.tree, ends, self.longest, self.size)
        cuts = np.flatnonzero(np.diff(messages) | np.diff(np.cumsum(size) // _SLICE_BYTES)) + 1
        return [(part, int(size[part].sum())) for part in np.split(np.arange(len(ends)), cuts)]

    def prompts(self) -> Iterable[pa.Table]:
        """A row for every turn of a user."""
        rows = np.flatnonzero(self.tree.user & self.good)
        return _Slices(lambda part: self._prompts(rows[part]), self._parts(rows))

    def _prompts(self, rows: Ints) -> pa.Table:
        asked = self.messages.take(pa.array(rows))
        first = self.first_reply[rows]
        at = pa.array(first, mask=first < 0)
        bits = np.where(first < 0, 0, self.bits[first])
        return pa.Table.from_arrays(
            [
                asked["message_id"],
                asked["conversation_id"],
                asked["user_id"],
                asked["source"],
                asked["card_id"],
                pa.array(self.tree.turn[rows]),
                _histories(self.tree, self.messages, rows, self.longest),
                self.messages["text"].take(at),
                self.messages["model"].take(at),
                _NAMES.take(pa.array(bits)),
                asked["time"],
            ],
            schema=TIMED_PROMPTS,
        )

    def _pairs(self) -> list[tuple[int, int, int, str]]:
        """Rows of prompt, chosen and rejected reply, and how the preference is known."""
        parent = self.tree.parent[self.replies]
        by_prompt = np.argsort(parent, kind="stable")
        starts = np.flatnonzero(np.diff(parent[by_prompt], prepend=-2))
        sizes = np.diff(np.append(starts, len(by_prompt)))
        replaced = set(self.tree.replaces[self.replies].tolist()) - {NONE}
        pairs = []
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            group = self.replies[by_prompt[start : start + size]].tolist()
            chosen = max(group, key=lambda row: (self.last_answer[row], row))
            answered = self.last_answer[chosen] >= 0
            for row in group:
                if row != chosen and self.last_answer[row] < 0:
                    how = "edited" if row in replaced else "answered" if answered else "regenerated"
                    pairs.append((int(parent[by_prompt[start]]), chosen, row, how))
        return pairs

    def siblings(self) -> Iterable[pa.Table]:
        """A row for every reply that was not gone on with, although another to the same prompt was."""
        pairs = self._pairs()
        ends = np.array([pair[0] for pair in pairs], np.int64)
        return _Slices(lambda part: self._siblings([pairs[k] for k in part]), self._parts(ends))

    def _siblings(self, pairs: Sequence[tuple[int, int, int, str]]) -> pa.Table:
        ends, chosen, rejected = (np.array([pair[k] for pair in pairs], np.int64) for k in range(3))
        asked = self.messages.take(pa.array(ends))
        replies = [self.messages.take(pa.array(rows)) for rows in (chosen, rejected)]
        history = _histories(self.tree, self.messages, ends, self.longest)
        return pa.Table.from_arrays(
            [
                *(asked[n] for n in ("message_id", "conversation_id", "user_id", "source", "card_id")),
                history,
                *(reply[name] for reply in replies for name in ("message_id", "text", "model")),
                pa.array([pair[3] for pair in pairs]),
            ],
            schema=SIBLINGS,
        )

    def problems(self) -> Iterator[pa.Table]:
        """A row for every event of a conversation without order, and every signal without its message."""
        rows: list[dict[str, Any]] = []
        for row in np.flatnonzero(~self.good):
            reason, shown = self.tree.broken[int(self.tree.conversation[row])]
            rows.append(
                self._problem(self.messages, int(row), "message", reason, self._detail(reason, shown))
            )
        for row in np.flatnonzero(~self.signal_used):
            at = int(self.signal_row[row])
            if at >= 0 and not self.good[at]:
                reason, shown = self.tree.broken[int(self.tree.conversation[at])]
                detail = self._detail(reason, shown)
            else:
                reason, detail = "signal_without_message", "there is no such message in its conversation"
            rows.append(self._problem(self.signals, int(row), "signal", reason, detail))
        if rows:
            yield pa.Table.from_pylist(rows, schema=PROBLEMS)

    def _problem(self, table: pa.Table, row: int, kind: str, reason: str, detail: str) -> dict[str, Any]:
        ids = {name: table[name][row].as_py() for name in ("event_id", "conversation_id", "message_id")}
        return {**ids, "type": kind, "reason": reason, "detail": detail}

    def _detail(self, reason: str, row: int) -> str:
        shown = {name: self.messages[name][row].as_py() for name in ("message_id", "parent_id", "replaces")}
        return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)

    def counts(self) -> dict[str, int]:
        """Events by what became of them."""
        tree = self.tree
        ordered = len(np.unique(tree.conversation[self.good]))
        first = self.first_reply >= 0
        return {
            "messages": self.messages.num_rows,
            "signals": self.signals.num_rows,
            "used_messages": int(self.good.sum()),
            "used_signals": int(self.signal_used.sum()),
            "conversations": ordered,
            "broken_conversations": len(tree.broken),
            "replies": len(self.replies),
            "refusals": int(self.refusals.sum()),
            "regenerated": len(self.replies) - int(first.sum()),
            "edited": int((self.good & (tree.replaces >= 0)).sum()),
            "unanswered": int((tree.user & self.good & ~first).sum()),
            "shortened": int((tree.user & (tree.depth > self.longest)).sum()),
        }


def assemble_group(
    messages: pa.Table, signals: pa.Table, *, window: timedelta, longest_history: int
) -> Group:
    """Assemble some conversations.

    A regenerated or edited reply is a sibling (same parent). A prompt has the first sibling and its signals: a
    regeneration counts against what caused it. Histories go on with the sibling that the user answered. A refusal in
    the gateway's own words stands in histories, but is nobody's reply: it is neither learned from nor a sibling.

    Args:
        messages: rows of the messages table, whole conversations, in any order.
        signals: rows of the signals table of the same conversations.
        window: longest time between a reply and the user's answer that counts as ``continue``.
        longest_history: messages that a history keeps, the newest ones.
    """
    order = [(name, "ascending") for name in ("conversation_id", "time", "message_id", "event_id")]
    by_message = [(name, "ascending") for name in ("conversation_id", "time", "event_id")]
    work = _Assembly(messages.sort_by(order), signals.sort_by(by_message), window, longest_history)
    return Group(work.prompts(), work.siblings(), list(work.problems()), work.counts())
