import itertools
import math
import random
from collections import Counter
from functools import cache

import pytest

from flywheel_tasks.simulation.annotators import (
    NOISE,
    SLIP,
    BatchError,
    annotator_taste,
    label_batch,
    rank,
)
from flywheel_tasks.simulation.cards import load_cards
from flywheel_tasks.simulation.population import make_population, opener
from flywheel_tasks.simulation.rewriting import answers_of, rewrite
from flywheel_tasks.simulation.utility import refuses, utility, violations
from tests.simulation.replies import REPLIES

CARDS = load_cards()


REVIEWS = {"reward_train": 1, "reward_heldout": 3, "policy": 1}
ASKED = ("false_refusal", "templated", "violates_card", "repeats")


def make_tasks(count, purpose="reward_train", candidates=4, kind="comparison"):
    users = make_population(3, count, 0.3, CARDS)
    tasks = []
    for number, user in enumerate(users):
        rng = random.Random(number)
        card = CARDS[number % len(CARDS)]
        texts = rng.sample(REPLIES, candidates)
        tasks.append(
            {
                "task_id": f"t{number}",
                "kind": kind,
                "purpose": purpose,
                "reviews": REVIEWS[purpose],
                "questions": [{"name": name, "text": name, "choices": None} for name in ASKED],
                "card": {
                    "card_id": card.card_id,
                    "name": card.name,
                    "traits": list(card.traits),
                    "instructions": list(card.instructions),
                },
                "history": [{"role": "user", "content": opener(user, card, rng)}],
                "candidates": [
                    {"candidate_id": f"t{number}-c{k}", "text": text} for k, text in enumerate(texts)
                ],
            }
        )
    return tasks


@pytest.mark.parametrize("gap", [0.3, 1.0, 2.0])
def test_ranking_noise_is_bradley_terry(gap):
    rng = random.Random(0)
    right = sum(rank({"a": gap, "b": 0.0, "c": -9.0}, rng)[0] == "a" for _ in range(4000)) / 4000
    assert right == pytest.approx(1 / (1 + math.exp(-gap / NOISE)), abs=0.025)


def test_pairs_are_right_as_often_as_documented():
    # docs/simulation.md: about 80 to 85% of the pairs. The pool's replies are further apart than one model's.
    tasks = make_tasks(150)
    by_id = {task["task_id"]: task for task in tasks}
    right = total = 0
    for label in label_batch(tasks, seed=1):
        task = by_id[label["task_id"]]
        card, texts = CARDS[int(task["task_id"][1:]) % len(CARDS)], {}
        for candidate in task["candidates"]:
            texts[candidate["candidate_id"]] = utility(card, task["history"], candidate["text"])
        for better, worse in itertools.combinations(label["ranking"], 2):
            total += 1
            right += texts[better] > texts[worse]
    assert 0.78 < right / total < 0.90


def test_reviews_by_purpose_and_the_label_format():
    for purpose, reviews in REVIEWS.items():
        tasks = make_tasks(12, purpose)
        labels = list(label_batch(tasks, seed=1))
        assert set(Counter(label["task_id"] for label in labels).values()) == {reviews}
        assert len({(label["task_id"], label["annotator"]) for label in labels}) == len(labels)
        for label in labels:
            assert label["simulated"] is True
            assert sorted(label["ranking"]) == sorted(label["answers"])
            assert all(set(a) == set(ASKED) for a in label["answers"].values())


def test_answers_are_right_but_for_slips():
    tasks = make_tasks(150)
    by_id = {task["task_id"]: task for task in tasks}
    wrong = total = 0
    for label in label_batch(tasks, seed=2):
        for candidate in by_id[label["task_id"]]["candidates"]:
            total += 1
            answer = label["answers"][candidate["candidate_id"]]["false_refusal"]
            wrong += answer != refuses(candidate["text"])
    assert wrong / total == pytest.approx(SLIP, abs=0.02)


def test_labels_depend_on_the_seed_and_the_task_only():
    tasks = make_tasks(20)
    whole = list(label_batch(tasks, seed=4))
    assert list(label_batch(tasks[5:9], seed=4)) == whole[5:9]
    assert list(label_batch(tasks, seed=5)) != whole


def test_annotators_are_trained_on_one_guideline():
    tastes = [annotator_taste(1, f"sim-annotator-{k}") for k in range(9)]
    assert len(set(tastes)) == 9
    assert all(1.0 < taste.instructions < 2.4 for taste in tastes)


def test_unknown_kinds_and_questions_and_too_many_reviews_are_errors():
    with pytest.raises(BatchError, match="t0: unknown kind"):
        list(label_batch(make_tasks(1, kind="other"), seed=1))
    with pytest.raises(BatchError, match="t0: 10 reviews"):
        list(label_batch([make_tasks(1)[0] | {"reviews": 10}], seed=1))
    asked = [{"name": "funny", "text": "Funny?", "choices": None}]
    with pytest.raises(BatchError, match="cannot answer the question 'funny'"):
        list(label_batch([make_tasks(1)[0] | {"questions": asked}], seed=1))


def test_steerability_tasks_name_the_broken_instructions_but_for_slips():
    tasks = make_tasks(120, candidates=2, kind="steerability")
    wrong = total = 0
    for label in label_batch(tasks, seed=6):
        task = next(task for task in tasks if task["task_id"] == label["task_id"])
        card = next(card for card in CARDS if card.card_id == task["card"]["card_id"])
        for candidate in task["candidates"]:
            named = label["violations"][candidate["candidate_id"]]
            assert label["answers"][candidate["candidate_id"]]["violates_card"] == bool(named)
            total += len(card.instructions)
            wrong += abs(len(named) - violations(card, candidate["text"]))
        if all(label["violations"].values()):
            assert (label["rewrite"] is None) == label["rewrite_skipped"]
    assert wrong / total == pytest.approx(SLIP, abs=0.02)


def test_rewrite_tasks_are_rewritten_or_skipped():
    tasks = make_tasks(60, "policy", candidates=1, kind="rewrite")
    labels = list(label_batch(tasks, seed=7))
    assert all(label["ranking"] == [] for label in labels)
    assert all((label["rewrite"] is None) == label["rewrite_skipped"] for label in labels)
    assert sum(label["rewrite"] is not None for label in labels) > 40


def test_the_best_candidate_is_rewritten_when_it_breaks_the_card():
    tasks = make_tasks(80)
    by_id = {task["task_id"]: task for task in tasks}
    for label in label_batch(tasks, seed=3):
        task = by_id[label["task_id"]]
        card = next(card for card in CARDS if card.card_id == task["card"]["card_id"])
        best = {c["candidate_id"]: c["text"] for c in task["candidates"]}[label["ranking"][0]]
        if violations(card, best) == 0:
            assert label["rewrite"] is None
        elif label["rewrite"] is not None:
            assert label["rewrite"]["candidate_id"] == label["ranking"][0]
            assert label["rewrite"]["text"] != best


@cache
def _rewrites():
    return list(_made())


def _made():
    people = make_population(9, len(CARDS) * len(REPLIES), 0.0, CARDS)
    for number, (user, (card, reply)) in enumerate(
        zip(people, itertools.product(CARDS, REPLIES), strict=True)
    ):
        rng = random.Random(number)
        history = [{"role": "user", "content": opener(user, card, rng)}]
        if violations(card, reply):
            yield card, history, reply, rewrite(card, history, reply, rng)


def test_rewrites_obey_the_card_and_are_better():
    found = _rewrites()
    assert len(found) > 250
    sound = [row for row in found if row[3] is not None and violations(row[0], row[3]) == 0]
    assert len(sound) / len(found) > 0.95
    better = [row for row in sound if utility(row[0], row[1], row[3]) > utility(row[0], row[1], row[2])]
    assert len(better) / len(sound) > 0.97
    assert not any(refuses(text) for *_, text in sound)


def test_rewrites_are_not_one_template():
    texts = [text for *_, text in _rewrites() if text]
    assert len(set(texts)) / len(texts) > 0.9
    openings = Counter(" ".join(text.lower().split()[:5]) for text in texts)
    assert openings.most_common(1)[0][1] / len(texts) < 0.06


def test_asked_for_a_rewrite_they_replace_what_is_poor_and_leave_what_is_good():
    card = next(card for card in CARDS if card.card_id == "granny-wren")
    texts = {"poor": "Hm, dear.", "good": "Slugs, dear? I put out beer for mine. Do yours eat the beans?"}
    assert [violations(card, text) for text in texts.values()] == [0, 0]
    task = make_tasks(1, "policy", kind="rewrite")[0]
    task |= {
        "card": {
            "card_id": card.card_id,
            "name": card.name,
            "traits": list(card.traits),
            "instructions": list(card.instructions),
        },
        "history": [{"role": "user", "content": "My garden is full of slugs again."}],
    }
    found = {}
    for name, text in texts.items():
        asked = task | {"candidates": [{"candidate_id": "c", "text": text}]}
        found[name] = next(iter(label_batch([asked], seed=1)))
        compared = next(iter(label_batch([asked | {"kind": "comparison"}], seed=1)))
        assert compared["rewrite"] is None, "it keeps the card, and nobody asked for another"
    assert found["poor"]["rewrite"]["text"] in answers_of(card.card_id)[task["history"][0]["content"]]
    assert (found["good"]["rewrite"], found["good"]["rewrite_skipped"]) == (None, True)
