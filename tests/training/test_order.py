import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.training.order import batched, keep_apart, training_order, whole_steps


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=80),
    st.integers(1, 9),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_every_row_is_used_once_an_epoch(lengths: list[int], batch_size: int, epochs: float) -> None:
    order = training_order(lengths, batch_size, epochs, seed=3)
    assert Counter(order) == Counter({row: int(epochs) for row in range(len(lengths))})
    assert order == training_order(lengths, batch_size, epochs, seed=3)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(1, 12),
    st.sampled_from([0.5, 1.0, 1.3, 2.0, 2.4, 3.7]),
    st.integers(0, 9),
)
def test_no_step_has_a_row_twice_and_every_pass_has_each_once(
    lengths: list[int], batch_size: int, epochs: float, seed: int
) -> None:
    """Whatever is left over at the end of a pass, and in a last part of one."""
    order = training_order(lengths, batch_size, epochs, seed)
    assert len(order) == math.ceil(len(lengths) * epochs)
    assert all(len(set(rows)) == len(rows) for rows in batched(order, len(lengths)))
    if len(lengths) >= batch_size:
        assert all(len(set(rows)) == len(rows) for rows in batched(order, batch_size))


def test_the_demos_rl_and_sft_learn_from_as_many_rows_as_a_step_has() -> None:
    prompts = [80, 81, 90, 64, 77, 102, 95, 88, 71, 99]
    rl = training_order(prompts, 4, 24 / len(prompts), seed=20261102)
    assert [len(set(rows)) for rows in batched(rl, 4)] == [4] * 6
    sft = training_order([20 + 7 * row % 90 for row in range(60)], 8, 2.0, seed=20261102)
    assert [len(set(rows)) for rows in batched(sft, 8)] == [8] * 15


def test_copies_that_a_mixture_makes_are_in_different_steps() -> None:
    names = [row if row < 40 else row % 4 for row in range(64)]  # four rows seven times, 36 once
    lengths = [20 + 11 * name % 60 for name in names]
    order = training_order(lengths, 8, 2.0, 1, names)
    assert Counter(order) == Counter(dict.fromkeys(range(64), 2))
    assert all(len({names[row] for row in rows}) == 8 for rows in batched(order, 8))
    in_one = [
        8 - len({names[row] for row in rows}) for rows in batched(training_order(lengths, 8, 2.0, 1), 8)
    ]
    assert sum(in_one) > 8  # by length alone they lie side by side


def test_what_cannot_be_kept_apart_stays() -> None:
    batches = [["a", "a", "a"], ["a", "b", "c"]]
    keep_apart(batches, str)
    assert Counter(name for batch in batches for name in batch) == {"a": 4, "b": 1, "c": 1}
    assert [len(batch) for batch in batches] == [3, 3]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 12))
def test_the_last_step_is_filled_with_rows_that_it_does_not_have(rows: list[int], size: int) -> None:
    filled = whole_steps(rows, size, lambda row: row)
    assert len(filled) == math.ceil(len(rows) / size) * size
    assert filled[: len(rows)] == rows
    added = filled[len(rows) :]
    last = set(rows[len(filled) - size :])
    others = set(rows) - last
    assert set(added[: len(others)]) <= others
    assert len(set(added[: len(others)])) == len(added[: len(others)])


def test_the_last_step_is_filled_from_the_rows_trained_first() -> None:
    assert whole_steps(list(range(11)), 8, lambda row: row) == [*range(11), *range(5)]
    assert whole_steps([0, 1, 2], 8, lambda row: row) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert whole_steps(["a", "b", "a", "c", "a"], 3, str.lower) == ["a", "b", "a", "c", "a", "b"]


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
