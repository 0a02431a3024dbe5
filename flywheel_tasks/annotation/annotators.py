"""How far each annotator agrees with the others on the same tasks (leave one out), and who is flagged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from flywheel_tasks.annotation.consensus import score, support
from flywheel_tasks.annotation.gold import NO_GOLD, Accuracy
from flywheel_tasks.annotation.tasks import places
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.settings import Annotators

Row = Mapping[str, Any]
FLAGGED_BY = ("agreement", "gold")


def decisions(labels: Sequence[Row], annotator: str) -> list[float]:
    """One annotator's pairwise decisions on a task against what the others prefer there.

    Args:
        labels: all reviews of the task.
        annotator: who is compared.

    Returns:
        for each pair of candidates on which the others have a preference: 1 for the same, 0 for the opposite, 1/2 where
        the annotator finds both equal. Empty without another review.
    """
    own = next((label for label in labels if label["annotator"] == annotator), None)
    others = [label for label in labels if label["annotator"] != annotator]
    if own is None or not others or not own["ranking"]:
        return []
    found = []
    for first, second in combinations(sorted(places(own["ranking"])), 2):
        preferred = support(others, first, second)
        if preferred != 0.5:
            better, worse = (first, second) if preferred > 0.5 else (second, first)
            found.append(score(own, better, worse))
    return found


def annotator_rows(
    labels_by_task: Mapping[str, Sequence[Row]], settings: Annotators, gold: Mapping[str, Accuracy]
) -> list[dict[str, Any]]:
    """One row for each annotator: labels, shared decisions, agreement with a 95% interval by task, and the flag.

    Flagged is who has at least ``min_items`` shared decisions and whose whole interval lies below ``min_agreement``
    (``flagged_by`` agreement), or who is as surely below the limit on gold tasks (``flagged_by`` gold).

    Args:
        labels_by_task: reviews of each task, gold tasks left out.
        settings: the limits.
        gold: by annotator, how often they are right on gold tasks.
    """
    labels: dict[str, int] = defaultdict(int)
    values: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, list[str]] = defaultdict(list)
    simulated: dict[str, bool] = {}
    for task, reviews in sorted(labels_by_task.items()):
        for label in reviews:
            name = label["annotator"]
            labels[name] += 1
            simulated[name] = label["simulated"]
            found = decisions(reviews, name)
            values[name] += found
            clusters[name] += [task] * len(found)
    rows = []
    for name in sorted({*labels, *gold}):
        estimate = share(values[name], clusters[name])
        high, known = estimate["high"], gold.get(name, NO_GOLD)
        apart = estimate["n"] >= settings.min_items and high is not None and high < settings.min_agreement
        by = ["agreement"] * apart + ["gold"] * known.fails(settings.gold)
        rows.append(
            {
                "annotator": name,
                "simulated": simulated.get(name),
                "labels": labels[name],
                "decisions": estimate["n"],
                "agreement": estimate["value"],
                "low": estimate["low"],
                "high": high,
                "gold_items": known.items,
                "gold_accuracy": known.value,
                "gold_low": known.low,
                "gold_high": known.high,
                "flagged": bool(by),
                "flagged_by": by,
            }
        )
    return rows
