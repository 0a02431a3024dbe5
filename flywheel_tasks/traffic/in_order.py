"""Work on several things at once whose results come in the order of the things."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

THREADS = 2  # of a pool for :func:`in_order`

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(pool: Executor, work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``map`` that runs only a few items ahead, and begins no more of them after an error.

    Args:
        pool: of :data:`THREADS` threads.
        work: on one item.
        items: taken as they are needed.
    """
    ahead: deque[Future[Made]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > THREADS + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
