import random

import krippendorff
import numpy as np
import pytest

from flywheel_tasks.annotation.agreement import alpha, item_rows, question_alpha, ranking_alpha
from tests.annotation.tasks_of_tests import label, task

TASK = task()


def reviews(*orders):
    return {"t1": [label(TASK, order, annotator=f"a{k}") for k, order in enumerate(orders)]}


def test_alpha_is_that_of_the_published_example():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C/E: nominal 0.743, ordinal 0.815.
    values = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[row[k] for row in values if row[k] is not None] for k in range(12)]
    assert alpha(units, range(12), "nominal", 0)["value"] == pytest.approx(0.743, abs=0.0005)
    found = alpha(units, range(12), "ordinal", 0)
    assert found["value"] == pytest.approx(0.815, abs=0.0005)
    assert (found["n"], found["clusters"]) == (11, 11)  # one unit has a single value
    assert found["low"] < found["value"] < found["high"] <= 1.0
    assert found == alpha(units, range(12), "ordinal", 0)


def test_alpha_of_perfect_opposite_and_missing_agreement():
    assert ranking_alpha(reviews((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)), 0)["value"] == pytest.approx(1.0)
    assert ranking_alpha(reviews((0, 1, 2, 3), (3, 2, 1, 0)), 0)["value"] < 0
    assert ranking_alpha(reviews((0, 1, 2, 3)), 0)["value"] is None
    assert 0.3 < ranking_alpha(reviews((0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2)), 0)["value"] < 1.0


def test_one_value_only_says_nothing_of_agreement():
    found = alpha([["no", "no"], ["no", "no"]], ["a", "b"], "nominal", 0)
    assert found == {"value": None, "low": None, "high": None, "n": 2, "clusters": 2}


def test_ranking_alpha_is_the_librarys_on_the_same_table():
    rng = random.Random(3)
    tasks = [task(f"t{k}") for k in range(30)]
    by_task, table = {}, np.full((3, 120), np.nan)
    for t, of in enumerate(tasks):
        by_task[of["task_id"]] = []
        for a in range(3):
            order = sorted(range(4), key=lambda k: k + rng.gauss(0, 1.5))
            by_task[of["task_id"]].append(label(of, order, annotator=f"a{a}"))
            for place, k in enumerate(order):
                table[a, 4 * t + k] = place
    found = ranking_alpha(by_task, 1)
    wanted = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal")
    assert found["value"] == pytest.approx(wanted)
    assert found["low"] < wanted < found["high"]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Two reviewers answer yes with p = 1/2 and agree on top of chance in a share of the units: alpha is that share.
    covered = 0
    for seed in range(60):
        rng = random.Random(seed)
        units = []
        for _ in range(80):
            first = rng.random() < 0.5
            units.append([first, first if rng.random() < 0.6 else rng.random() < 0.5])
        found = alpha(units, range(80), "nominal", seed)
        covered += found["low"] <= 0.6 <= found["high"]
    assert covered >= 51  # 95% of 60 is 57; below 51 has a chance of about 0.1%


def test_items_and_questions():
    tasks = [task("t1", reviews=2), task("t2"), task("t3")]
    by_task = {
        "t1": [label(tasks[0], (0, 1, 2, 3), "a1", faults=(0,)), label(tasks[0], (1, 0, 2, 3), "a2")],
        "t2": [label(tasks[1])],
    }
    rows = item_rows(tasks, by_task)
    assert [(row["task_id"], row["reviews"]) for row in rows] == [("t1", 2), ("t2", 1)]
    assert rows[0]["ranking_agreement"] == pytest.approx(5 / 6)
    assert rows[0]["answer_agreement"] == pytest.approx(11 / 12)
    assert (rows[1]["ranking_agreement"], rows[1]["answer_agreement"]) == (None, None)
    assert question_alpha(tasks, by_task, "violates_card", 0)["value"] == pytest.approx(0.0)
    assert question_alpha(tasks, by_task, "templated", 0)["value"] is None
