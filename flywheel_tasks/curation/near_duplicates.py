"""Rows that lie too close to a kept one: greedy in a given order, compared within and across k-means cells.

The idea of SemDeDup (Abbas et al., arXiv 2303.09540): compare within clusters only. There, what lies on both sides of a
border is missed; here a row is also compared with the next nearest cells, and what is still missed is measured.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flywheel_tasks.curation.cells import Cells

_FIRST_BLOCK, _BLOCK = 8_192, 65_536  # the first is small: a dense group has no kept row yet
_ROWS_AT_ONCE = 4_096  # of one comparison: bounds its matrix


@dataclass(frozen=True)
class Pruned:
    """What became of each row.

    Attributes:
        keeper: row that it repeats, or -1 where it is kept.
        cosine: to the keeper, 0 where it is kept.
    """

    keeper: np.ndarray
    cosine: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Kept rows, in order."""
        return np.flatnonzero(self.keeper < 0)


class _Workers:
    """Threads that multiply matrices on one core each."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Callable[..., Iterable[Any]]:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        return self._pool.map

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)


def _by_cell(rows: np.ndarray, cells: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows by their cell, each in order. ``cells``: of each row, or (rows, probes)."""
    flat = cells.reshape(-1)
    owner = np.repeat(rows, cells.size // max(len(rows), 1)) if cells.ndim == 2 else rows
    order = np.argsort(flat, kind="stable")
    edges = np.searchsorted(flat[order], np.arange(1, count))
    return np.split(owner[order], edges)


def _take(table: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    return table.index_select(0, torch.from_numpy(rows))  # twice as fast as table[rows]


class _Greedy:
    """The state of one pass: what is kept so far, by cell."""

    def __init__(
        self, vectors: np.ndarray, cells: Cells, limit: float, workers: Callable[..., Iterable[Any]]
    ):
        self._vectors, self._cells, self._limit, self._map = torch.from_numpy(vectors), cells, limit, workers
        self._kept: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(cells.centroids)
        self.keeper = np.full(len(vectors), -1, dtype=np.int64)
        self.cosine = np.full(len(vectors), -2.0, dtype=np.float32)

    def _compare(self, task: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (row, other, cosine) above the limit: for each row the closest of the others only."""
        asked, others = task
        with torch.inference_mode():
            cosines = _take(self._vectors, asked) @ _take(self._vectors, others).T
            hit = torch.nonzero(cosines.amax(dim=1) > self._limit).flatten()
            best, place = cosines[hit].max(dim=1)
        return asked[hit.numpy()], others[place.numpy()], best.numpy()

    def _pairs(self, task: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs (row, earlier row, cosine) above the limit."""
        asked, others = task
        with torch.inference_mode():
            cosines = _take(self._vectors, asked) @ _take(self._vectors, others).T
            row, other = torch.nonzero(cosines > self._limit, as_tuple=True)
            values = cosines[row, other].numpy()
        later, earlier = asked[row.numpy()], others[other.numpy()]
        right = earlier < later
        return later[right], earlier[right], values[right]

    def _tasks(
        self, asked: Sequence[np.ndarray], others: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (rows[start : start + _ROWS_AT_ONCE], other)
            for rows, other in zip(asked, others, strict=True)
            if len(other)
            for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]

    def block(self, rows: np.ndarray) -> None:
        """Decide on the next rows of the order."""
        count = len(self._kept)
        probes = self._cells.probes
        asked = _by_cell(rows, probes[rows], count)
        for found, others, values in self._map(self._compare, self._tasks(asked, self._kept)):
            better = values > self.cosine[found]
            self.keeper[found[better]], self.cosine[found[better]] = others[better], values[better]
        left = rows[self.keeper[rows] < 0]
        homes = _by_cell(left, self._cells.home[left], count)
        asked = _by_cell(left, probes[left], count)
        parts = list(self._map(self._pairs, self._tasks(asked, homes)))
        if parts:
            self._decide(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        for cell, members in enumerate(homes):
            fresh = members[self.keeper[members] < 0]
            if len(fresh):
                self._kept[cell] = np.concatenate([self._kept[cell], fresh])

    def _decide(self, later: np.ndarray, earlier: np.ndarray, values: np.ndarray) -> None:
        """Greedy in order over the pairs of a block: a row goes if an earlier one of its pairs stays."""
        order = np.lexsort((earlier, later))
        for row, other, value in zip(
            later[order].tolist(), earlier[order].tolist(), values[order].tolist(), strict=True
        ):
            if self.keeper[other] < 0 and value > self.cosine[row]:
                self.keeper[row], self.cosine[row] = other, value


def prune(vectors: np.ndarray, cells: Cells, limit: float, threads: int) -> Pruned:
    """Drop, in the order of the rows, each whose cosine to an earlier kept row is above the limit.

    A row is compared with the kept rows whose cell is among its probes; a row that is near a dropped row only stays.

    Args:
        vectors: unit vectors (rows, dimension), float32; the order decides which of a group stays.
        cells: of the rows.
        limit: cosine above which a row repeats a kept one.
        threads: of the comparison.
    """
    with _Workers(threads) as workers:
        greedy = _Greedy(vectors, cells, limit, workers)
        start, size = 0, _FIRST_BLOCK
        while start < len(vectors):
            greedy.block(np.arange(start, min(start + size, len(vectors))))
            start, size = start + size, _BLOCK
    return Pruned(greedy.keeper, np.where(greedy.keeper < 0, np.float32(0), greedy.cosine))


def prune_to_share(
    vectors: np.ndarray, cells: Cells, limit: float, share: float, threads: int, rounds: int = 8
) -> tuple[Pruned, float]:
    """Lower the limit until at most ``share`` of the rows stay; exactly that many do if the given limit keeps more.

    The limit is found by bisection; of the rows that the last limit drops and the given one does not, those least
    like their keeper come back: no two that the given limit keeps are more alike than it.

    Args:
        vectors: as for :func:`prune`.
        cells: of the rows.
        limit: the highest limit: what is above it goes in any case.
        share: of the rows to keep.
        threads: of the comparison.
        rounds: of the bisection.

    Returns:
        the rows, and the limit that was reached.
    """
    wanted = max(1, round(share * len(vectors)))
    found = prune(vectors, cells, limit, threads)
    if len(found.kept) <= wanted:
        return found, limit
    low, high = -1.0, limit
    best = prune(vectors, cells, low, threads)
    for _ in range(rounds):
        middle = (max(low, 0.0) + high) / 2
        trial = prune(vectors, cells, middle, threads)
        if len(trial.kept) > wanted:
            high = middle
        else:
            low, best = middle, trial
    short = wanted - len(best.kept)
    dropped = np.flatnonzero((best.keeper >= 0) & (found.keeper < 0))
    back = dropped[np.lexsort((dropped, best.cosine[dropped]))][: max(short, 0)]
    keeper, cosine = best.keeper.copy(), best.cosine.copy()
    keeper[back], cosine[back] = -1, 0.0
    return Pruned(keeper, cosine), float(cosine[keeper >= 0].min())


def nearest_other(
    vectors: np.ndarray, asked: np.ndarray, others: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """The exact nearest of ``others`` to each asked row, itself left out: its row and the cosine.

    Args:
        vectors: unit vectors (rows, dimension), float32.
        asked: rows to search for.
        others: rows to search among.
        threads: of the comparison.
    """

    def work(start: int) -> tuple[np.ndarray, np.ndarray]:
        block = asked[start : start + 256]
        best, place = np.full(len(block), -2.0, dtype=np.float32), np.full(len(block), -1)
        with torch.inference_mode():
            for begin in range(0, len(others), 16_384):
                rows = others[begin : begin + 16_384]
                cosines = _take(table, block) @ _take(table, rows).T
                cosines[torch.from_numpy(block[:, None] == rows[None, :])] = -2.0
                values, where = cosines.max(dim=1)
                better = values.numpy() > best
                best[better], place[better] = values.numpy()[better], rows[where.numpy()[better]]
        return place, best

    table = torch.from_numpy(vectors)
    with _Workers(threads) as workers:
        parts: list[tuple[np.ndarray, np.ndarray]] = list(workers(work, range(0, len(asked), 256)))
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    places, values = zip(*parts, strict=True)
    return np.concatenate(places), np.concatenate(values)
