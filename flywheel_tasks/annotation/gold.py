"""Gold items: tasks whose right answers are known, mixed into a batch to see how well annotators judge.

Agreement among annotators shows who differs from the others; it does not show that most of them are wrong, or that
somebody clicks through. A gold task looks like any other: the same kind, number of replies, questions, guidelines and
reviews as a task of the batch. No pair is made of it.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError, model_validator

from flywheel_tasks.annotation.consensus import score
from flywheel_tasks.annotation.tasks import GOLD, AnnotationError, id_of_task, short_id
from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.settings import GoldItems
from flywheel_tasks.storage.documents import numbered_lines

Row = dict[str, Any]
_DRAWN = ("comparison", "steerability")  # kinds of tasks that rank replies
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldCard(_Part):
    """The card of a gold item."""

    name: Text
    traits: tuple[Text, ...] = ()
    instructions: tuple[Text, ...] = ()


class Turn(_Part):
    """A turn of its history."""

    role: Literal["user", "assistant"]
    content: Text


class GoldItem(_Part):
    """One line of a file in ``gold_items/``.

    Attributes:
        gold_id: unique.
        card: what replies must keep to.
        history: ends with the user's turn.
        replies: to be judged.
        answers: by question, the right answer for each reply; null where people may differ.
        better: pairs of numbers of replies (from 0): the first is clearly better than the second.
    """

    gold_id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    card: GoldCard
    history: Annotated[tuple[Turn, ...], Field(min_length=1)]
    replies: Annotated[tuple[Text, ...], Field(min_length=2, max_length=8)]
    answers: dict[str, tuple[StrictBool | StrictStr | None, ...]] = {}
    better: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> "GoldItem":
        count = len(self.replies)
        if self.history[-1].role != "user":
            raise ValueError("history must end with the user's turn")
        if len({" ".join(reply.split()) for reply in self.replies}) < count:
            raise ValueError("replies: two are the same")
        for question, answers in self.answers.items():
            if len(answers) != count:
                raise ValueError(f"answers.{question}: {len(answers)} for {count} replies")
        if any(not 0 <= k < count for pair in self.better for k in pair) or any(
            a == b for a, b in self.better
        ):
            raise ValueError(f"better: pairs of two numbers below {count}")
        order: TopologicalSorter[int] = TopologicalSorter()
        for first, second in self.better:
            order.add(second, first)
        try:
            order.prepare()
        except CycleError as error:
            raise ValueError(f"better: goes in a circle: {error.args[1]}") from error
        if not self.better and all(answer is None for row in self.answers.values() for answer in row):
            raise ValueError("nothing is known: answers and better are empty")
        return self


class Accuracy(NamedTuple):
    """How often an annotator is right on gold tasks.

    Attributes:
        items: gold tasks labelled.
        value: share of the known answers and preferences that the labels give.
        low: of its 95% interval, by task.
        high: the other end.
    """

    items: int
    value: float | None
    low: float | None
    high: float | None

    def fails(self, settings: GoldItems) -> bool:
        """Whether it is surely below the limit, on enough items."""
        return (
            self.items >= settings.min_items and self.high is not None and self.high < settings.min_accuracy
        )


NO_GOLD = Accuracy(0, None, None, None)


def load_gold(folder: Path) -> list[GoldItem]:
    """The items of all ``*.jsonl`` files of a folder, by id.

    Raises:
        AnnotationError: a line is no gold item, or an id repeats; the message names file and line.
    """
    found: dict[str, GoldItem] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in numbered_lines(path.read_bytes().splitlines()):
            try:
                item = GoldItem.model_validate(orjson.loads(line))
            except (orjson.JSONDecodeError, ValidationError) as error:
                raise AnnotationError(f"{path}:{number}: no gold item: {error}") from error
            if item.gold_id in found:
                raise AnnotationError(f"{path}:{number}: gold_id {item.gold_id} is there twice")
            found[item.gold_id] = item
    return [found[name] for name in sorted(found)]


def gold_tasks(items: Sequence[GoldItem], tasks: Sequence[Row], part: float, seed: int) -> list[Row]:
    """Gold tasks for a batch: so many that they are ``part`` of it, as far as there are items that fit.

    An item fits if some task of the batch shows as many replies: else it would stand out.

    Args:
        items: known ones.
        tasks: of the batch, without gold.
        part: share of the whole batch, below 1.
        seed: draws items, the tasks they imitate, and the order of replies.

    Raises:
        AnnotationError: no item fits, or one answers a question that is not asked.
    """
    drawn = [task for task in tasks if task["kind"] in _DRAWN]
    wanted = math.ceil(part * len(tasks) / (1 - part)) if part else 0
    if not wanted or not drawn:
        return []
    models: dict[int, list[Row]] = defaultdict(list)
    for task in drawn:
        models[len(task["candidates"])].append(task)
    fitting = sorted(
        (item for item in items if len(item.replies) in models),
        key=lambda item: draw_order(seed, "annotation gold", item.gold_id),
    )
    if not fitting:
        raise AnnotationError(
            f"gold_items: annotation_batch.gold_share is {part}, but no item has as many replies as a task of the "
            f"batch ({', '.join(map(str, sorted(models)))})"
        )
    made = []
    for item in fitting[:wanted]:
        chance = random.Random(f"gold|{seed}|{item.gold_id}")
        made.append(_task(item, chance.choice(models[len(item.replies)]), seed))
    return made


def _task(item: GoldItem, model: Row, seed: int) -> Row:
    """An item as a task that looks like ``model``."""
    key = f"t-{short_id(GOLD, seed, item.gold_id)}"
    shown = list(range(len(item.replies)))
    random.Random(f"order|{seed}|{key}").shuffle(shown)
    card = {"card_id": f"gold-{item.gold_id}", **item.card.model_dump(mode="json")}
    history = [turn.model_dump() for turn in item.history]
    task_id = id_of_task(key, card, history, [item.replies[k] for k in shown])
    ids = {k: f"{task_id}-c{place}" for place, k in enumerate(shown)}
    asked = {question["name"] for question in model["questions"]}
    if unknown := sorted(set(item.answers) - asked):
        raise AnnotationError(
            f"gold_items: {item.gold_id} answers {unknown[0]}, which the batch does not ask; asked are "
            f"{', '.join(sorted(asked))}"
        )
    for question in model["questions"]:
        _check_answers(item, question)
    return {
        "task_id": task_id,
        "kind": model["kind"],
        "purpose": GOLD,
        "prompt_id": f"gold-{item.gold_id}",
        "user_id": None,
        "source": "internal",
        "reviews": model["reviews"],
        "card": card,
        "history": history,
        "candidates": [
            {"candidate_id": ids[k], "policy": GOLD, "text": item.replies[k], "drawn": k} for k in shown
        ],
        "questions": model["questions"],
        "guidelines": model["guidelines"],
        "gold": {
            "answers": {
                ids[k]: {name: row[k] for name, row in item.answers.items() if row[k] is not None}
                for k in shown
            },
            "better": [[ids[first], ids[second]] for first, second in item.better],
        },
    }


def _check_answers(item: GoldItem, question: Row) -> None:
    """Refuse a known answer that nobody can give: every annotator would be wrong by it."""
    possible = [json.dumps(one) for one in question["choices"] or (True, False)]
    for answer in item.answers.get(question["name"], ()):
        if answer is not None and (given := json.dumps(answer)) not in possible:
            raise AnnotationError(
                f"gold_items: {item.gold_id}: answers.{question['name']}: {given} is none of {', '.join(possible)}"
            )


def mixed(tasks: Sequence[Row], gold: Sequence[Row], seed: int) -> list[Row]:
    """Tasks in their order with the gold ones at places that the seed draws."""
    if not gold:
        return list(tasks)
    places = set(random.Random(f"gold|{seed}").sample(range(len(tasks) + len(gold)), len(gold)))
    ordinary, known = iter(tasks), iter(gold)
    return [next(known if place in places else ordinary) for place in range(len(tasks) + len(gold))]


def checks(task: Mapping[str, Any], label: Mapping[str, Any]) -> list[float]:
    """What of a gold task's known answers a label gives: 1, 0, or 1/2 where it ranks a known pair as equal."""
    known = task["gold"]
    found = [
        float(label["answers"][candidate][name] == answer)
        for candidate, answers in sorted(known["answers"].items())
        for name, answer in sorted(answers.items())
    ]
    return found + [score(label, first, second) for first, second in known["better"]]


def right(tasks: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All annotators' accuracy on gold tasks, with its 95% interval by task."""
    gold = {task["task_id"]: task for task in tasks}
    rows = [
        (value, label["task_id"])
        for label in labels
        if label["task_id"] in gold
        for value in checks(gold[label["task_id"]], label)
    ]
    return {"accuracy": dict(share([value for value, _ in rows], [task for _, task in rows]))}


def accuracy_of(
    tasks: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]]
) -> dict[str, Accuracy]:
    """How often each annotator is right on gold tasks.

    Args:
        tasks: gold ones.
        labels: any; those of other tasks are left out.
    """
    gold = {task["task_id"]: task for task in tasks}
    values: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        if (task := gold.get(label["task_id"])) is not None:
            found = checks(task, label)
            values[label["annotator"]] += found
            clusters[label["annotator"]] += [label["task_id"]] * len(found)
    estimates = {name: share(values[name], clusters[name]) for name in sorted(values)}
    return {
        name: Accuracy(len(set(clusters[name])), of["value"], of["low"], of["high"])
        for name, of in estimates.items()
    }
