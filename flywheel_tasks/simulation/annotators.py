"""Simulated annotators: rank candidates, answer the questions, name broken rules, rewrite what is bad."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.cards import check_of
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.rewriting import rewrite
from flywheel_tasks.simulation.utility import (
    AVERAGE,
    FEATURES,
    Taste,
    refuses,
    repetition,
    templated,
    utility,
    violations,
)

PANEL = 9  # annotators
KINDS = ("comparison", "steerability", "rewrite")
REPEATS_FROM = 0.3  # share of repeated word triples that a reader notices
NOISE = 0.6  # scale of the Gumbel noise: P(a ranked above b) = sigmoid((u_a - u_b) / NOISE)
SLIP = 0.03  # chance of a wrong answer to a question
BETTER = 1.0  # utility: asked for a rewrite, they hand in what they like so much more than a reply that keeps its card


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


def _true_answer(question: str, card: Card, history: Sequence[Turn], text: str) -> bool:
    """What a careful reader would say."""
    match question:
        case "false_refusal":
            return refuses(text)
        case "templated":
            return templated(text)
        case "violates_card":
            return violations(card, text) > 0
        case "repeats":
            return repetition(history, text) >= REPEATS_FROM
    raise BatchError(
        f"simulated annotators cannot answer the question {question!r}: take it out of annotation_batch.questions, or "
        "let people label (label.annotator)"
    )


def _answers(
    task: Mapping[str, Any], card: Card, text: str, violated: Sequence[str] | None, rng: random.Random
) -> dict[str, bool]:
    """Answers with a slip now and then; whether the card is broken follows from the rules named, where they are."""
    found = {}
    for question in task["questions"]:
        name = question["name"]
        truth = _true_answer(name, card, task["history"], text) != (rng.random() < SLIP)
        found[name] = bool(violated) if name == "violates_card" and violated is not None else truth
    return found


def _violated(card: Card, text: str, rng: random.Random) -> list[str]:
    """Ids of the instructions that a reply breaks, each seen but for a slip; traits are beyond these annotators."""
    found = []
    for number, instruction in enumerate(card.instructions, start=1):
        check = check_of(instruction)
        broken = check is not None and not obeys(check, text)
        if broken != (rng.random() < SLIP):
            found.append(f"instruction-{number}")
    return found


def _reviewers(task: Mapping[str, Any], seed: int) -> list[str]:
    if task["kind"] not in KINDS:
        raise BatchError(f"task {task['task_id']}: unknown kind {task['kind']!r}")
    if not 1 <= task["reviews"] <= PANEL:
        raise BatchError(
            f"task {task['task_id']}: {task['reviews']} reviews, the panel has {PANEL} annotators"
        )
    rng = random.Random(f"panel|{seed}|{task['task_id']}")
    return [f"sim-annotator-{k}" for k in sorted(rng.sample(range(PANEL), task["reviews"]))]


def _label(task: Mapping[str, Any], annotator: str, seed: int) -> dict[str, Any]:
    rng = random.Random(f"label|{seed}|{annotator}|{task['task_id']}")
    card, history = Card.from_row(task["card"]), task["history"]
    texts = {candidate["candidate_id"]: candidate["text"] for candidate in task["candidates"]}
    taste = annotator_taste(seed, annotator)
    ranking = rank({key: utility(card, history, text, taste) for key, text in texts.items()}, rng)
    steers = task["kind"] == "steerability"
    violated = {key: _violated(card, texts[key], rng) for key in sorted(texts)} if steers else {}
    answers = {key: _answers(task, card, texts[key], violated.get(key), rng) for key in sorted(texts)}
    better = _rewrite(task, card, (ranking[0], texts[ranking[0]]), taste, rng)
    asked = task["kind"] == "rewrite" or (steers and all(violated.values()))
    return {
        "task_id": task["task_id"],
        "annotator": annotator,
        "simulated": True,
        "ranking": [] if task["kind"] == "rewrite" else ranking,
        "answers": answers,
        "violations": violated,
        "rewrite": better,
        "rewrite_skipped": better is None and asked,
    }


def _rewrite(
    task: Mapping[str, Any], card: Card, best: tuple[str, str], taste: Taste, rng: random.Random
) -> dict[str, str] | None:
    """A rewrite of the best candidate (id and text) if it breaks the card or, where one was asked for, is poor."""
    candidate_id, text = best
    broken = violations(card, text) > 0
    if not broken and task["kind"] != "rewrite":
        return None
    history = task["history"]
    better = rewrite(card, history, text, rng)
    if better is None:
        return None
    if not broken and utility(card, history, better, taste) - utility(card, history, text, taste) < BETTER:
        return None
    return {"candidate_id": candidate_id, "text": better}


def label_batch(tasks: Iterable[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Label every task, by as many annotators as it asks for.

    Args:
        tasks: rows of ``batch.jsonl``.
        seed: of the noise.

    Yields:
        rows of ``labels.jsonl``, all with ``simulated: true``.

    Raises:
        BatchError: a task's kind or one of its questions is unknown.
    """
    for task in tasks:
        for annotator in _reviewers(task, seed):
            yield _label(task, annotator, seed)
