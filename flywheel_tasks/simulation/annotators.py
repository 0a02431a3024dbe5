"""Simulated annotators: rank candidates, answer the questions, rewrite what breaks the card."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.rewriting import rewrite
from flywheel_tasks.simulation.utility import (
    AVERAGE,
    FEATURES,
    Taste,
    refuses,
    templated,
    utility,
    violations,
)

REVIEWS = {"reward_train": 1, "reward_heldout": 3, "policy": 1}
PANEL = 9  # annotators
NOISE = 0.6  # scale of the Gumbel noise: P(a ranked above b) = sigmoid((u_a - u_b) / NOISE)
SLIP = 0.03  # chance of a wrong answer to a question


class BatchError(ValueError):
    """The batch cannot be labelled; the message names the task and the rule."""


def annotator_taste(seed: int, annotator: str) -> Taste:
    """An annotator's weights: trained on one guideline, so closer together than users' are."""
    rng = random.Random(f"annotator|{seed}|{annotator}")
    weights = {name: getattr(AVERAGE, name) * rng.lognormvariate(0.0, 0.1) for name in FEATURES}
    return replace(AVERAGE, **weights)


def gumbel(rng: random.Random) -> float:
    """A standard Gumbel number; the difference of two is logistic, which makes noisy ranks Bradley-Terry."""
    return -math.log(-math.log(max(rng.random(), 1e-12)))


def rank(utilities: Mapping[str, float], rng: random.Random) -> list[str]:
    """Ids from best to worst by utility and Gumbel noise (Plackett-Luce)."""
    noisy = {key: utilities[key] + NOISE * gumbel(rng) for key in sorted(utilities)}
    return sorted(noisy, key=lambda key: (-noisy[key], key))


def _answers(card: Card, text: str, rng: random.Random) -> dict[str, bool]:
    true = {
        "false_refusal": refuses(text),
        "templated": templated(text),
        "violates_card": violations(card, text) > 0,
    }
    return {question: answer != (rng.random() < SLIP) for question, answer in true.items()}


def _reviewers(task: Mapping[str, Any], seed: int) -> list[str]:
    if task["purpose"] not in REVIEWS:
        raise BatchError(f"task {task['task_id']}: unknown purpose {task['purpose']!r}")
    rng = random.Random(f"panel|{seed}|{task['task_id']}")
    return [f"sim-annotator-{k}" for k in sorted(rng.sample(range(PANEL), REVIEWS[task["purpose"]]))]


def _label(task: Mapping[str, Any], annotator: str, seed: int) -> dict[str, Any]:
    rng = random.Random(f"label|{seed}|{annotator}|{task['task_id']}")
    card, history = Card.from_row(task["card"]), task["history"]
    texts = {candidate["candidate_id"]: candidate["text"] for candidate in task["candidates"]}
    taste = annotator_taste(seed, annotator)
    ranking = rank({key: utility(card, history, text, taste) for key, text in texts.items()}, rng)
    return {
        "task_id": task["task_id"],
        "annotator": annotator,
        "simulated": True,
        "ranking": ranking,
        "answers": {key: _answers(card, texts[key], rng) for key in sorted(texts)},
        "rewrite": _rewrite(card, history, ranking[0], texts[ranking[0]], rng),
    }


def _rewrite(
    card: Card, history: Sequence[Turn], candidate_id: str, text: str, rng: random.Random
) -> dict[str, str] | None:
    """A rewrite of the best candidate if it breaks the card."""
    if not violations(card, text):
        return None
    better = rewrite(card, history, text, rng)
    return None if better is None else {"candidate_id": candidate_id, "text": better}


def label_batch(tasks: Iterable[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Label every task: one annotator, or three for held-out reward tasks.

    Args:
        tasks: rows of ``batch.jsonl``.
        seed: of the noise.

    Yields:
        rows of ``labels.jsonl``, all with ``simulated: true``.

    Raises:
        BatchError: a task's purpose is unknown.
    """
    for task in tasks:
        for annotator in _reviewers(task, seed):
            yield _label(task, annotator, seed)
