"""Events that occur more than once over all partitions: which one stays, which repeat it, which contradict it.

Only hashes are compared, in ranges that fit into memory. Events of one id hash and one content hash are the same (128
bits agree); where contents differ, the ids themselves are looked up.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from flywheel_tasks.traffic.partition import read_stream

_RANGE_ROWS = 1 << 20

Place = tuple[int, int]  # partition, line


@dataclass
class Repeats:
    """Rows that are not kept.

    Attributes:
        duplicates: number of rows that repeat an earlier one.
        dropped: lines of the rows that are not kept, conflicts included, by partition, sorted.
        conflicts: by partition and line of a contradicting row, the place of the row that it contradicts.
    """

    duplicates: int = 0
    dropped: dict[int, np.ndarray] = field(default_factory=dict)
    conflicts: dict[Place, Place] = field(default_factory=dict)


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


def _event_ids(entries: Sequence[Entry], places: Sequence[Place]) -> dict[Place, str]:
    """Event ids of some rows."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for number, line in places:
        wanted[number].append(line)
    found: dict[Place, str] = {}
    for entry in entries:
        if entry.number not in wanted:
            continue
        lines = np.array(wanted[entry.number])
        for batch in read_stream(entry.folder / "origins.arrow"):
            here = np.flatnonzero(np.isin(batch.column("line").to_numpy(), lines))
            for row in batch.take(pa.array(here)).to_pylist():
                found[entry.number, row["line"]] = row["event_id"]
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
    _resolve(
        entries, np.concatenate(unclear, axis=1) if unclear else np.zeros((4, 0), np.uint64), repeats, dropped
    )
    repeats.dropped = {number: np.sort(np.concatenate(lines)) for number, lines in dropped.items()}
    return repeats


def _resolve(
    entries: Sequence[Entry], rows: np.ndarray, repeats: Repeats, dropped: dict[int, list[np.ndarray]]
) -> None:
    """Decide on rows with one id hash and different contents, by their true ids."""
    places = list(zip(rows[3].tolist(), rows[2].tolist(), strict=True))
    ids = _event_ids(entries, places)
    firsts: dict[str, tuple[int, Place]] = {}
    for place, content in zip(places, rows[1].tolist(), strict=True):
        kept, at = firsts.setdefault(ids[place], (content, place))
        if at == place:
            continue
        dropped[place[0]].append(np.array([place[1]]))
        if kept == content:
            repeats.duplicates += 1
        else:
            repeats.conflicts[place] = at
