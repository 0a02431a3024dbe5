"""Several reviews of one task to one ranking, and how well reviewers agree."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import krippendorff
import numpy as np

Row = Mapping[str, Any]


def mean_ranks(labels: Sequence[Row]) -> dict[str, float]:
    """Mean rank (0 is best) of each candidate over the reviews of one task: the Borda count, upside down."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for label in labels:
        for rank, candidate in enumerate(label["ranking"]):
            ranks[candidate].append(rank)
    return {candidate: sum(values) / len(values) for candidate, values in sorted(ranks.items())}


def support(labels: Sequence[Row], better: str, worse: str) -> float:
    """Share of the reviews that rank one candidate above the other."""
    return sum(label["ranking"].index(better) < label["ranking"].index(worse) for label in labels) / len(
        labels
    )


def majority(labels: Sequence[Row], candidate: str, question: str) -> bool:
    """What at least half of the reviews answer; a tie is a yes, because each question asks for a fault."""
    return 2 * sum(label["answers"][candidate][question] for label in labels) >= len(labels)


def ranking_alpha(labels_by_task: Mapping[str, Sequence[Row]]) -> float | None:
    """Krippendorff's alpha (ordinal) of the ranks that reviewers gave, over tasks with several reviews.

    A unit is a candidate, a value its rank in one reviewer's ranking (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability"). 1 is perfect agreement, 0 that of chance.

    Returns:
        alpha; None without a task of several reviews.
    """
    shared = {task: labels for task, labels in labels_by_task.items() if len(labels) > 1}
    if not shared:
        return None
    units = [(task, candidate) for task in sorted(shared) for candidate in sorted(shared[task][0]["ranking"])]
    columns = {unit: column for column, unit in enumerate(units)}
    annotators = sorted({label["annotator"] for labels in shared.values() for label in labels})
    rows = {annotator: row for row, annotator in enumerate(annotators)}
    values = np.full((len(annotators), len(units)), np.nan)
    for task, labels in shared.items():
        for label in labels:
            for rank, candidate in enumerate(label["ranking"]):
                values[rows[label["annotator"]], columns[task, candidate]] = rank
    return float(krippendorff.alpha(reliability_data=values, level_of_measurement="ordinal"))
