"""Several reviews of one task to one ranking and one answer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.annotation.tasks import places

Row = Mapping[str, Any]


def mean_ranks(labels: Sequence[Row]) -> dict[str, float]:
    """Mean rank (0 is best, ties share theirs) of each candidate over the reviews: the Borda count, upside down."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for label in labels:
        for candidate, place in places(label["ranking"]).items():
            ranks[candidate].append(place)
    return {candidate: sum(values) / len(values) for candidate, values in sorted(ranks.items())}


def support(labels: Sequence[Row], better: str, worse: str) -> float:
    """Share of the reviews that rank one candidate above the other; a review with both equal counts half."""
    return sum(score(label, better, worse) for label in labels) / len(labels)


def score(label: Row, better: str, worse: str) -> float:
    """1 if a review ranks ``better`` above ``worse``, 0 if below, 1/2 if equal."""
    found = places(label["ranking"])
    return 0.5 + 0.5 * (found[better] < found[worse]) - 0.5 * (found[better] > found[worse])


def majority(labels: Sequence[Row], candidate: str, question: str) -> bool:
    """What at least half of the reviews answer; a tie is a yes, because each question asks for a fault."""
    return 2 * sum(label["answers"][candidate][question] for label in labels) >= len(labels)


def reviews_by_task(labels: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Labels by task, those of one task sorted by annotator."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for label in labels:
        found[label["task_id"]].append(dict(label))
    return {task: sorted(rows, key=lambda row: str(row["annotator"])) for task, rows in sorted(found.items())}
