"""How well reviewers agree: Krippendorff's alpha with bootstrap intervals, and the agreement on each item."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import krippendorff
import numpy as np

from flywheel_tasks.annotation.consensus import score
from flywheel_tasks.annotation.tasks import places, texts_of

Row = Mapping[str, Any]
Level = Literal["nominal", "ordinal"]
RESAMPLES = 200
CONFIDENCE = 0.95


def alpha(
    units: Sequence[Sequence[Hashable]], clusters: Sequence[Hashable], level: Level, seed: int
) -> dict[str, Any]:
    """Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability") with a percentile interval.

    Args:
        units: for each unit the values that its reviewers gave; units with one value say nothing of agreement.
        clusters: the task of each unit; whole tasks are drawn in the bootstrap.
        level: ``nominal`` or ``ordinal``; ordinal values must be sortable.
        seed: of the bootstrap.

    Returns:
        value, low, high, n (units with several values) and clusters; None where it is not defined, as with one value
        only. 1 is perfect agreement, 0 that of chance.
    """
    several = [
        (list(values), cluster) for values, cluster in zip(units, clusters, strict=True) if len(values) > 1
    ]
    domain = sorted({value for values, _ in several for value in values}, key=_order)
    names = sorted({cluster for _, cluster in several}, key=str)
    found: dict[str, Any] = {
        "value": None,
        "low": None,
        "high": None,
        "n": len(several),
        "clusters": len(names),
    }
    if len(domain) < 2:
        return found
    columns = {value: column for column, value in enumerate(domain)}
    counts = np.zeros((len(several), len(domain)), dtype=int)
    rows: dict[Hashable, list[int]] = {name: [] for name in names}
    for row, (values, cluster) in enumerate(several):
        rows[cluster].append(row)
        for value in values:
            counts[row, columns[value]] += 1
    found["value"] = _alpha(counts, level)
    rng = np.random.default_rng(seed)
    groups = [np.array(rows[name]) for name in names]
    drawn = [
        _alpha(counts[np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])], level)
        for _ in range(RESAMPLES)
    ]
    sound = [value for value in drawn if value is not None]
    if len(groups) > 1 and len(sound) > RESAMPLES / 2:
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(sound, [tail, 100 - tail])
        found |= {"low": float(low), "high": float(high)}
    return found


def _order(value: Hashable) -> tuple[str, Any]:
    return type(value).__name__, value


def _alpha(counts: np.ndarray, level: Level) -> float | None:
    """Alpha of (units, values) counts; None where only one value was given."""
    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement=level))


def ranking_alpha(labels_by_task: Mapping[str, Sequence[Row]], seed: int) -> dict[str, Any]:
    """Ordinal alpha of the places that reviewers gave: a unit is a candidate, a value its place in one ranking."""
    units, clusters = [], []
    for task, labels in sorted(labels_by_task.items()):
        found = [places(label["ranking"]) for label in labels if label["ranking"]]
        for candidate in sorted(found[0]) if found else ():
            units.append([place[candidate] for place in found])
            clusters.append(task)
    return alpha(units, clusters, "ordinal", seed)


def question_alpha(
    tasks: Sequence[Row], labels_by_task: Mapping[str, Sequence[Row]], question: str, seed: int
) -> dict[str, Any]:
    """Nominal alpha of the answers to one question: a unit is a candidate."""
    units, clusters = [], []
    for task in tasks:
        labels = labels_by_task.get(task["task_id"], ())
        for candidate in texts_of(task) if labels else ():
            given = [label["answers"][candidate].get(question) for label in labels]
            units.append([value for value in given if value is not None])
            clusters.append(task["task_id"])
    return alpha(units, clusters, "nominal", seed)


def item_rows(tasks: Sequence[Row], labels_by_task: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """One row for each reviewed task: reviews, and the share of reviewer pairs that agree on order and on answers.

    Two reviewers who rank one pair of candidates differently disagree on it; if just one of them finds both equal, they
    half agree. None where a task has one review.
    """
    rows = []
    for task in tasks:
        labels = labels_by_task.get(task["task_id"], ())
        if not labels:
            continue
        rows.append(
            {
                "task_id": task["task_id"],
                "kind": task["kind"],
                "purpose": task["purpose"],
                "reviews": len(labels),
                "ranking_agreement": _ranking_agreement(labels) if task["kind"] != "rewrite" else None,
                "answer_agreement": _answer_agreement(labels),
            }
        )
    return rows


def _ranking_agreement(labels: Sequence[Row]) -> float | None:
    pairs = list(combinations(sorted(places(labels[0]["ranking"])), 2))
    values = [
        1 - abs(score(first, *pair) - score(second, *pair))
        for first, second in combinations(labels, 2)
        for pair in pairs
    ]
    return float(np.mean(values)) if values else None


def _answer_agreement(labels: Sequence[Row]) -> float | None:
    values = [
        first["answers"][candidate][question] == answer
        for first, second in combinations(labels, 2)
        for candidate, answers in second["answers"].items()
        for question, answer in answers.items()
    ]
    return float(np.mean(values)) if values else None


def reviews_histogram(labels_by_task: Mapping[str, Sequence[Row]]) -> dict[str, int]:
    """How many tasks have one review, two, and so on."""
    counts = Counter(len(labels) for labels in labels_by_task.values())
    return {str(reviews): count for reviews, count in sorted(counts.items())}
