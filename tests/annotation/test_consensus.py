import pytest

from flywheel_tasks.annotation.consensus import majority, mean_ranks, support
from tests.annotation.tasks_of_tests import label, task

TASK = task()


def reviews(*orders, faults=()):
    found = [*faults, *[()] * len(orders)]
    return [label(TASK, order, annotator=f"a{k}", faults=found[k]) for k, order in enumerate(orders)]


def test_mean_ranks_and_support():
    labels = reviews((0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2))
    assert mean_ranks(labels) == pytest.approx(
        {"t1-c0": 1 / 3, "t1-c1": 2 / 3, "t1-c2": 7 / 3, "t1-c3": 8 / 3}
    )
    assert support(labels, "t1-c0", "t1-c1") == pytest.approx(2 / 3)
    assert support(labels, "t1-c0", "t1-c3") == 1.0


def test_a_tie_of_answers_is_a_yes():
    labels = reviews((0, 1, 2, 3), (0, 1, 2, 3), faults=((0,), ()))
    assert majority(labels, "t1-c0", "violates_card")
    assert not majority(labels, "t1-c1", "violates_card")


def test_ties_share_their_place_and_count_half():
    labels = reviews((0, (1, 2), 3), ((0, 1, 2, 3),))
    assert mean_ranks(labels) == pytest.approx({"t1-c0": 0.75, "t1-c1": 1.5, "t1-c2": 1.5, "t1-c3": 2.25})
    assert support(labels, "t1-c1", "t1-c2") == 0.5
    assert support(labels, "t1-c0", "t1-c1") == 0.75
