"""How far the labelling of a batch has come."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.annotation.tasks import GOLD, SPLIT_OF, AnnotationError

Row = Mapping[str, Any]


class LabelsNotReadyError(AnnotationError):
    """People have not labelled enough yet; the message says how much is missing and how to go on."""


def progress(tasks: Sequence[Row], labels: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Tasks, and how many of them have any review, several, and all they ask for, by purpose.

    Args:
        tasks: rows of the batch.
        labels: sound labels.
    """
    reviews = Counter(label["task_id"] for label in labels)
    found: dict[str, dict[str, int]] = {}
    for purpose in [*SPLIT_OF, *[GOLD] * any(task["purpose"] == GOLD for task in tasks)]:
        of_purpose = [task for task in tasks if task["purpose"] == purpose]
        counts = [reviews[task["task_id"]] for task in of_purpose]
        found[purpose] = {
            "labelled": sum(count > 0 for count in counts),
            "unlabelled": sum(count == 0 for count in counts),
            "multi_review": sum(count > 1 for count in counts),
            "done": sum(count >= task["reviews"] for task, count in zip(of_purpose, counts, strict=True)),
        }
    return found


def done_share(tasks: Sequence[Row], labels: Sequence[Row]) -> float:
    """Share of the tasks that have all the reviews they ask for."""
    return sum(row["done"] for row in progress(tasks, labels).values()) / max(len(tasks), 1)


def require_enough(tasks: Sequence[Row], labels: Sequence[Row], least: float, location: str) -> None:
    """Stop while too little is labelled.

    Args:
        tasks: rows of the batch.
        labels: sound labels.
        least: share of the tasks that must have all their reviews (``label.min_done``).
        location: where labels are delivered, for the message.

    Raises:
        LabelsNotReadyError: fewer are done, or there is no label at all.
    """
    share = done_share(tasks, labels)
    if labels and share >= least:
        return
    done = sum(row["done"] for row in progress(tasks, labels).values())
    raise LabelsNotReadyError(
        f"{location}: {done} of {len(tasks)} tasks ({share:.0%}) have all their reviews; label.min_done asks for "
        f"{least:.0%}. Hand the tasks out (flywheel annotation export, or push), put the exported labels into "
        f"{location} (or: flywheel annotation pull), see flywheel annotation status, then run the generation again."
    )
