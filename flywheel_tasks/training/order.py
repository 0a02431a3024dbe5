"""The order in which rows are trained on: seeded, batches of like length, fixed before training starts.

A step that has a row twice learns from fewer rows than its size says, so copies of a row are kept in different steps:
those of two passes, and those that a mixture makes within one. Every step is whole: several processes would each fill
their part of a short one with rows of their own choice, and train on other rows than one process does.
"""

import math
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Any, TypeVar

Item = TypeVar("Item")


def batched(rows: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive pieces of ``size`` rows; the last may be shorter."""
    items = iter(rows)
    while piece := list(islice(items, size)):
        yield piece


def training_order(
    lengths: Sequence[int],
    batch_size: int,
    epochs: float,
    seed: int,
    names: Sequence[Hashable] | None = None,
) -> list[int]:
    """Row indices of all epochs, in training order, for a sequential sampler and ``num_train_epochs=1``.

    The order is data and not the state of a random generator, so a run resumed in a later epoch can neither
    see rows again nor skip any. Rows are shuffled epoch by epoch; within groups of 16 batches of an epoch they are
    sorted by length, cut into batches, and the batches shuffled: padding stays small and every row is used equally
    often. No batch has a row twice if there are as many rows as it needs; the one that the end of an epoch leaves open
    is filled with rows of the next that it does not have, and the one that the last leaves open by :func:`whole_steps`.

    Args:
        lengths: tokens of each row.
        batch_size: rows a step.
        epochs: how often each row is used; a last part of an epoch uses a random part of the rows.
        seed: of the shuffles.
        names: of each row; rows of one name are copies, such as a mixture makes, and are kept in different batches
            where there are enough batches. By default no row is another's copy.
    """
    random_ = random.Random(seed)
    total = math.ceil(len(lengths) * epochs)
    name = (lambda row: row) if names is None else names.__getitem__
    order: list[int] = []
    while len(order) < total:
        rows = list(range(len(lengths)))
        random_.shuffle(rows)
        open_ = order[len(order) // batch_size * batch_size :]
        first = _filling(open_, rows, -len(order) % batch_size, name)
        taken = set(first)
        rows = [*first, *(row for row in rows if row not in taken)][: total - len(order)]
        batches = [
            batch
            for group in batched(rows[len(first) :], batch_size * 16)
            for batch in batched(sorted(group, key=lambda row: lengths[row], reverse=True), batch_size)
        ]
        keep_apart(batches, name)
        # Only the last group can end in a short batch; it must stay last to keep the others whole.
        short = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
        random_.shuffle(batches)
        order += chain(rows[: len(first)], chain.from_iterable(batches + short))
    return order


def whole_steps(rows: Sequence[Item], size: int, name: Callable[[Item], Hashable]) -> list[Item]:
    """Rows in training order, with the last step filled up: with the rows trained first that it does not have yet.

    Args:
        rows: in training order.
        size: rows a step.
        name: of a row; rows of one name are copies. Where there are fewer names than a step has rows, some come again.
    """
    open_ = len(rows) % size
    if not open_:
        return list(rows)
    held = {name(row) for row in rows[-open_:]}
    fresh: list[Item] = []
    again: list[Item] = []
    for row in rows:
        (again if name(row) in held else fresh).append(row)
        held.add(name(row))
    return [*rows, *islice(cycle([*fresh, *again]), size - open_)]


def _filling(
    open_: Sequence[int], rows: Sequence[int], count: int, name: Callable[[int], Hashable]
) -> list[int]:
    """``count`` of the rows for a batch that has some already: first those that neither it nor they have yet."""
    held = {name(row) for row in open_}
    others: list[int] = []
    for row in rows if count else ():
        if len(others) < count and name(row) not in held:
            held.add(name(row))
            others.append(row)
    taken = set(others)
    return [*others, *(row for row in rows if row not in taken)][:count]


def keep_apart(batches: Sequence[list[Item]], name: Callable[[Item], Hashable]) -> None:
    """Swap rows between batches, in place, until none has two of one name, where that can be.

    A row goes to the nearest batch with which a swap helps: if batches are sorted by length, to one of like length.

    Args:
        batches: of rows; their sizes stay.
        name: of a row.
    """
    names = [[name(row) for row in batch] for batch in batches]
    for here, held in enumerate(names):
        if len(set(held)) == len(held):
            continue
        for place in range(len(held)):
            if held.count(held[place]) == 1:
                continue
            if (found := _partner(names, here, place)) is not None:
                there, other = found
                _swap(names, here, place, there, other)
                _swap(batches, here, place, there, other)


def _swap(parts: Sequence[list[Any]], here: int, place: int, there: int, other: int) -> None:
    parts[here][place], parts[there][other] = parts[there][other], parts[here][place]


def _partner(names: Sequence[list[Hashable]], here: int, place: int) -> tuple[int, int] | None:
    """Batch and place of the nearest row that can be swapped with one and gives neither batch a name that it has."""
    for distance in range(1, len(names)):
        for there in (here + distance, here - distance):
            if not 0 <= there < len(names) or names[here][place] in names[there]:
                continue
            for other, candidate in enumerate(names[there]):
                if candidate not in names[here]:
                    return there, other
    return None
