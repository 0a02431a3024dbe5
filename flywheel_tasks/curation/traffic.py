"""All prompts of a generation as columns: which are in, and why the others are out.

Texts pass through in batches; what stays in memory of a prompt is its ids, its counts, and the short text that is
embedded. So the number of prompts is bounded by their embeddings, not by their histories.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_tasks.curation.dimensions import cohorts, depth_band, length_band, script
from flywheel_tasks.curation.duplicates import normal_key, prompt_text
from flywheel_tasks.curation.tables import PROMPTS, REMOVED, CurationError
from flywheel_tasks.storage.tables import read_batches, write_table

Row = dict[str, Any]
Reasons = Mapping[str, tuple[str, str]]  # prompt id -> reason, detail
BATCH = 16_384
_ROWS = 2_048  # prompts with their histories that are Python objects at once
_CHARACTERS = 1 << 25  # of these histories
_READ = ("source", "character", "depth", "length", "script")
_IDS = ("prompt_id", "conversation_id", "user_id")


def _much(rows: Sequence[Row]) -> bool:
    """Whether rows are as many, or their histories as long, as may be in memory at once."""
    if len(rows) >= _ROWS:
        return True
    return sum(len(turn["content"]) for row in rows for turn in row["history"]) >= _CHARACTERS


def read_conversations(path: Path) -> Iterator[list[Row]]:
    """Rows of a prompts table, some thousand at once: whole conversations, but for those that alone have so much.

    Such a one goes on in the next rows that are given: histories repeat its turns, and all of them at once may be too
    much for the memory.

    Raises:
        CurationError: the rows of a conversation do not stand together.
    """
    waiting: list[Row] = []
    ended: set[str] = set()
    going_on: str | None = None

    def check(rows: Sequence[Row]) -> None:
        names = {row["conversation_id"] for row in rows}
        if again := (names - {going_on}) & ended:
            raise CurationError(f"{path.parent.name}/{path.name}: conversation {min(again)} is in two places")
        ended.update(names)

    for batch in read_batches(path, _ROWS):
        waiting += batch.to_pylist()
        last = waiting[-1]["conversation_id"]
        rest = [row for row in waiting if row["conversation_id"] == last]
        if _much(rest):
            check(waiting)
            yield waiting
            waiting, going_on = [], last
        elif len(rest) < len(waiting):
            whole = [row for row in waiting if row["conversation_id"] != last]
            check(whole)
            yield whole
            waiting, going_on = rest, None
    if waiting:
        check(waiting)
        yield waiting


@dataclass
class Traffic:
    """One entry a prompt, in the order of the file, which means nothing.

    Attributes:
        ids: prompt, conversation and user ids.
        dimensions: value of each prompt by dimension, before any filter.
        order: prompts by time, turn and id: of prompts that are alike the first stays, whatever order they came in.
        keys: 16 bytes that are equal for exact duplicates; empty where the prompt was out at once.
        texts: what is embedded; empty where the prompt was out at once.
        reasons: why it is out, and the detail; None where it is in.
        clean: places of the prompts that passed the rules on text, in the order of their file.
    """

    ids: dict[str, list[str]]
    dimensions: dict[str, list[str]]
    order: np.ndarray
    keys: list[bytes]
    texts: list[str]
    reasons: list[tuple[str, str] | None]
    clean: np.ndarray

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def alive(self) -> np.ndarray:
        """Prompts that are in, in order."""
        return np.array([row for row in self.order.tolist() if self.reasons[row] is None], dtype=np.int64)

    def drop(self, rows: Sequence[int], reason: str, details: Sequence[str] | str) -> None:
        """Take prompts out.

        Args:
            rows: which.
            reason: of all.
            details: of each, or of all.
        """
        every = details if isinstance(details, str) else None
        for place, row in enumerate(rows):
            assert self.reasons[row] is None
            self.reasons[row] = (reason, every if every is not None else details[place])

    def counts(self) -> dict[str, int]:
        """Prompts that are out, by reason, sorted."""
        return dict(sorted(Counter(found[0] for found in self.reasons if found is not None).items()))

    def write(self, clean: Path, kept: Path, removed: Path) -> tuple[int, dict[str, int]]:
        """Write the prompts that are in, in order, and the others with their reasons.

        Args:
            clean: what :func:`read_traffic` wrote: the prompts that passed the rules on text.
            kept: Parquet file of the prompts.
            removed: Parquet file of the reasons.

        Returns:
            prompts written, and their signals by name.
        """
        alive, number, found = self.alive, 0, []
        rank = np.full(len(self), -1, dtype=np.int64)
        rank[alive] = np.arange(len(alive))
        rank = rank[self.clean]
        for batch in read_batches(clean, BATCH):
            mask = rank[number : number + len(batch)] >= 0
            found.append(pa.Table.from_batches([batch]).filter(pa.array(mask)))
            number += len(batch)
        table = pa.concat_tables(found).take(pa.array(np.argsort(rank[rank >= 0], kind="stable")))
        write_table(table, kept)
        out = [row for row in self.order.tolist() if self.reasons[row] is not None]
        columns = {name: [self.ids[name][row] for row in out] for name in _IDS}
        why = [reason for row in out if (reason := self.reasons[row]) is not None]
        columns |= {"reason": [reason for reason, _ in why], "detail": [detail for _, detail in why]}
        write_table(pa.table(columns, schema=REMOVED), removed)
        signals = Counter(name for names in table["signals"].to_pylist() for name in names)
        return len(table), dict(sorted(signals.items()))


def read_traffic(
    path: Path,
    clean: Path,
    cards: Mapping[str, Mapping[str, Any]],
    rules: Callable[[list[Row]], tuple[list[Row], Reasons]],
) -> Traffic:
    """Read the prompts table and apply the rules that need the whole text.

    Args:
        path: rows as in ``prompts.parquet`` of ``data/conversations``.
        clean: where to write the prompts that pass, as the rules leave them.
        cards: by id.
        rules: of rows as :func:`read_conversations` gives them those that pass, maybe rewritten, and why the others
            do not.

    Raises:
        CurationError: there is no prompt, an id occurs twice, or a rule lost a prompt.
    """
    table = f"{path.parent.name}/{path.name}"
    found = _Reader(cards)
    with pq.ParquetWriter(clean, PROMPTS, compression="zstd") as writer:
        for rows in read_conversations(path):
            passed, out = rules(rows)
            if {row["prompt_id"] for row in passed} | set(out) != {row["prompt_id"] for row in rows}:
                raise CurationError(f"{table}: a rule on text lost a prompt or named one that is not there")
            order = found.add(rows, {row["prompt_id"]: row for row in passed}, out)
            writer.write_table(pa.Table.from_pylist(order, schema=PROMPTS))
    if not found.times:
        raise CurationError(f"{table}: there is no prompt")
    if repeated := [name for name, count in Counter(found.ids["prompt_id"]).items() if count > 1]:
        raise CurationError(f"{table}: prompt_id {min(repeated)} occurs twice")
    return found.traffic()


class _Reader:
    """Columns as they grow."""

    def __init__(self, cards: Mapping[str, Mapping[str, Any]]) -> None:
        self._cards = cards
        self.ids: dict[str, list[str]] = {name: [] for name in _IDS}
        self._dimensions: dict[str, list[str]] = {name: [] for name in _READ}
        self.times: list[datetime] = []
        self._turns: list[int] = []
        self._keys: list[bytes] = []
        self._texts: list[str] = []
        self._reasons: list[tuple[str, str] | None] = []
        self._clean: list[int] = []

    def add(self, rows: Sequence[Row], passed: Mapping[str, Row], out: Reasons) -> list[Row]:
        """Add rows; those that passed, in their order."""
        order = []
        for row in rows:
            for name in _IDS:
                self.ids[name].append(row[name])
            said = row["history"][-1]["content"]
            values = (row["source"], row["card_id"], depth_band(row["turn"]), length_band(said), script(said))
            for name, value in zip(_READ, values, strict=True):
                self._dimensions[name].append(intern(value))
            self.times.append(row["time"])
            self._turns.append(row["turn"])
            self._reasons.append(out.get(row["prompt_id"]))
            left = passed.get(row["prompt_id"])
            if left is None:
                self._keys.append(b"")
                self._texts.append("")
                continue
            self._clean.append(len(self._reasons) - 1)
            order.append(left)
            self._keys.append(hashlib.sha256(repr(normal_key(left)).encode()).digest()[:16])
            self._texts.append(prompt_text(left, self._cards[left["card_id"]]["name"]))
        return order

    def traffic(self) -> Traffic:
        """All of them."""
        names, times, turns = self.ids["prompt_id"], self.times, self._turns
        order = sorted(range(len(times)), key=lambda row: (times[row], turns[row], names[row]))
        self._dimensions["cohort"] = cohorts(self.ids["user_id"], times)
        places, clean = np.array(order, dtype=np.int64), np.array(self._clean, dtype=np.int64)
        return Traffic(self.ids, self._dimensions, places, self._keys, self._texts, self._reasons, clean)
