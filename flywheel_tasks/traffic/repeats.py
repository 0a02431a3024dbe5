"""Events that occur more than once over all partitions: which one stays, which repeat it, which contradict it.

Only hashes are compared, in ranges that fit into memory. Events of one id hash and one content hash are the same (128
bits agree); where contents differ, another hash of the ids themselves is made (again 128 bits).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from flywheel_tasks.traffic.partition import read_stream

_RANGE_ROWS = 1 << 20


@dataclass
class Repeats:
    """Rows that are not kept.

    Attributes:
        duplicates: number of rows that repeat an earlier one.
        dropped: lines of the rows that are not kept, conflicts included, by partition, sorted.
        conflicts: contradicting rows by partition: line, and partition and line of the row that it contradicts,
            (3, rows), sorted by line.
    """

    duplicates: int = 0
    dropped: dict[int, np.ndarray] = field(default_factory=dict)
    conflicts: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def contradicting(self) -> int:
        """Number of contradicting rows."""
        return sum(rows.shape[1] for rows in self.conflicts.values())


@dataclass(frozen=True)
class Entry:
    """A parsed partition.

    Attributes:
        number: its place in the order of partitions.
        path: its name in the logs.
        folder: of its files.
        document: its counts and runs.
    """

    number: int
    path: str
    folder: Path
    document: dict[str, Any]


class _Keys:
    """A file of keys, which is open only while it is read: there may be more of them than a process may have open.

    Args:
        number: of the partition.
        path: the file.
        edges: where the ranges of the id hash meet.
    """

    def __init__(self, number: int, path: Path, edges: np.ndarray) -> None:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
        self._number, self._path = number, path
        # What the header says is remembered: to parse it again takes longer than to read a range.
        order: Literal["F", "C"] = "F" if keys.flags.f_contiguous else "C"
        self._form: tuple[int, tuple[int, ...], Literal["F", "C"]] = (keys.offset, keys.shape, order)
        self._cuts = [0, *np.searchsorted(keys[0], edges).tolist(), keys.shape[1]]

    def range(self, k: int) -> np.ndarray | None:
        """The keys of a range and the partition, (4, rows); None where there are none."""
        first, end = self._cuts[k : k + 2]
        if first == end:
            return None
        offset, shape, order = self._form
        keys = np.memmap(self._path, np.uint64, "r", offset, shape, order)
        return np.concatenate([keys[:, first:end], np.full((1, end - first), self._number, np.uint64)])


def _ranges(entries: Sequence[Entry]) -> Iterator[np.ndarray]:
    """Keys of all rows in ranges of the id hash: id, content, line, partition, (4, rows), sorted by id."""
    rows = sum(entry.document["rows"] for entry in entries)
    count = max(1, -(-rows // _RANGE_ROWS))
    edges = np.array([(k << 64) // count for k in range(1, count)], np.uint64)
    files = [
        _Keys(entry.number, entry.folder / name, edges)
        for entry in entries
        for name in entry.document["keys"]
    ]
    for k in range(count):
        parts = [part for file in files if (part := file.range(k)) is not None]
        if parts:
            joined = np.concatenate(parts, axis=1)
            yield joined[:, np.argsort(joined[0], kind="stable")]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose id hash occurs more than once, by id, partition and line, and the first row of each one's group."""
    same = keys[0, 1:] == keys[0, :-1]
    again = np.zeros(keys.shape[1], bool)
    again[1:] |= same
    again[:-1] |= same
    found = keys[:, again]
    found = found[:, np.lexsort((found[2], found[3], found[0]))]
    starts = np.flatnonzero(np.append(True, found[0, 1:] != found[0, :-1])[: found.shape[1]])
    first = np.repeat(starts, np.diff(np.append(starts, found.shape[1])))
    return found, first


def places_in(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Place of each value among some sorted, different ones; -1 where it is none of them."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[at] == values, at, -1) if len(ordered) else np.full(len(values), -1)


def _by_partition(partitions: np.ndarray, lines: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every partition, and the numbers of its rows, sorted by line."""
    order = np.lexsort((lines, partitions))
    numbers, starts = np.unique(partitions[order], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        yield int(number), rows


def _true_ids(entries: Sequence[Entry], rows: np.ndarray) -> np.ndarray:
    """Another hash of the event ids of some rows: where both agree the ids do. The ids themselves may be many."""
    folders = {entry.number: entry.folder for entry in entries}
    found = np.zeros(rows.shape[1], np.uint64)
    for number, mine in _by_partition(rows[3], rows[2]):
        lines = rows[2, mine].astype(np.int64)
        for batch in read_stream(folders[number] / "origins.arrow"):
            at = places_in(lines, batch.column("line").to_numpy())
            here = np.flatnonzero(at >= 0)
            ids = batch.column("event_id").take(pa.array(here)).to_pylist()
            digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in ids)
            found[mine[at[here]]] = np.frombuffer(digests, np.uint64)
    return found


def find_repeats(entries: Sequence[Entry]) -> Repeats:
    """Find what is not kept: of the events with one id, all but the first (by partition, then line).

    Args:
        entries: the partitions, in order.
    """
    repeats = Repeats()
    dropped: dict[int, list[np.ndarray]] = defaultdict(list)
    unclear: list[np.ndarray] = []
    for keys in _ranges(entries):
        found, first = _groups(keys)
        differs = found[1] != found[1, first]
        in_doubt = np.isin(first, first[differs])
        unclear.append(found[:, in_doubt])
        later = ~in_doubt & (np.arange(found.shape[1]) != first)
        repeats.duplicates += int(later.sum())
        for number in np.unique(found[3, later]):
            dropped[int(number)].append(found[2, later & (found[3] == number)].astype(np.int64))
    if unclear:
        _resolve(entries, np.concatenate(unclear, axis=1), repeats, dropped)
    repeats.dropped = {number: np.sort(np.concatenate(lines)) for number, lines in dropped.items()}
    return repeats


def _resolve(
    entries: Sequence[Entry], rows: np.ndarray, repeats: Repeats, dropped: dict[int, list[np.ndarray]]
) -> None:
    """Decide on rows with one id hash and different contents, by their true ids."""
    if not rows.shape[1]:
        return
    ids = _true_ids(entries, rows)
    order = np.lexsort((rows[2], rows[3], ids, rows[0]))  # of each id the first one first
    rows, ids = rows[:, order], ids[order]
    starts = np.flatnonzero(np.append(True, (rows[0, 1:] != rows[0, :-1]) | (ids[1:] != ids[:-1])))
    first = np.repeat(starts, np.diff(np.append(starts, rows.shape[1])))
    later = np.flatnonzero(first != np.arange(rows.shape[1]))
    first, same = first[later], rows[1, later] == rows[1, first[later]]
    repeats.duplicates += int(same.sum())
    places = np.stack([rows[2, later], rows[3, first], rows[2, first]]).astype(np.int64)
    for number, mine in _by_partition(rows[3, later], rows[2, later]):
        dropped[number].append(places[0, mine])
        if len(other := mine[~same[mine]]):
            repeats.conflicts[number] = places[:, other]
