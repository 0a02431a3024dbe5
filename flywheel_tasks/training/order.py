"""The order in which rows are trained on: seeded, batches of like length, fixed before training starts."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice


def batched(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    """Consecutive pieces of ``size`` rows; the last may be shorter."""
    items = iter(rows)
    while piece := list(islice(items, size)):
        yield piece


def training_order(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[int]:
    """Row indices of all epochs, in training order, for a sequential sampler and ``num_train_epochs=1``.

    The order is data and not the state of a random generator, so a run resumed in a later epoch can neither
    see rows again nor skip any. Rows are shuffled epoch by epoch; within groups of 16 batches they are sorted
    by length, cut into batches, and the batches shuffled: padding stays small and every row is used equally
    often.

    Args:
        lengths: tokens of each row.
        batch_size: rows a step.
        epochs: how often each row is used; a last part of an epoch uses a random part of the rows.
        seed: of the shuffles.
    """
    random_ = random.Random(seed)
    total = math.ceil(len(lengths) * epochs)
    rows: list[int] = []
    while len(rows) < total:
        epoch = list(range(len(lengths)))
        random_.shuffle(epoch)
        rows += epoch[: total - len(rows)]
    order: list[int] = []
    for group in batched(rows, batch_size * 16):
        batches = list(batched(sorted(group, key=lambda row: lengths[row], reverse=True), batch_size))
        # Only the last group can end in a short batch; it must stay last to keep the others whole.
        short = [batches.pop()] if len(batches[-1]) < batch_size else []
        random_.shuffle(batches)
        order += chain.from_iterable(batches + short)
    return order
