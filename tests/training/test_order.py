from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.training.order import batched, training_order


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=80),
    st.integers(1, 9),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_every_row_is_used_once_an_epoch(lengths: list[int], batch_size: int, epochs: float) -> None:
    order = training_order(lengths, batch_size, epochs, seed=3)
    assert Counter(order) == Counter({row: int(epochs) for row in range(len(lengths))})
    assert order == training_order(lengths, batch_size, epochs, seed=3)


def test_part_of_an_epoch_repeats_no_row() -> None:
    order = training_order([5] * 40, 4, 0.5, seed=1)
    assert len(order) == len(set(order)) == 20


def test_seed_changes_the_order() -> None:
    assert training_order(list(range(40)), 4, 1.0, 1) != training_order(list(range(40)), 4, 1.0, 2)


def test_batches_are_of_like_length() -> None:
    lengths = [(7 * row) % 200 + 1 for row in range(128)]
    spread = [
        max(lengths[row] for row in batch) - min(lengths[row] for row in batch)
        for batch in batched(training_order(lengths, 8, 1.0, 0), 8)
    ]
    assert max(spread) < 20  # in a plain shuffle nearly every batch spreads over more than 100
