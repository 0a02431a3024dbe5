"""What the panel said of a model, with intervals: true utility, and what it is made of."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from flywheel_tasks.evaluation.intervals import Estimate, mean, share

GROUPS = {
    "training": "training cards",
    "characters": "unseen characters",
    "wordings": "unseen wordings",
}
SHARES = ("instruction_following", "instruction_violation", "false_refusal", "templated")
MEANS = ("utility", "words", "emoji")
Row = Mapping[str, Any]


def _users(rows: Sequence[Row]) -> list[str]:
    return [row["user_id"] for row in rows]


def variety(rows: Sequence[Row]) -> float | None:
    """Share of different word pairs among all word pairs of the replies (distinct-2, Li et al. 2016).

    It falls with the amount of text, so compare models that answered the same number of messages at like length.
    """
    found = [pair for row in rows for pair in pairwise(row["reply"].lower().split())]
    return len(set(found)) / len(found) if found else None


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Figures by group and over ``all`` groups, with 95% intervals clustered by person.

    Args:
        rows: of ``flywheel simulate panel``.
    """
    parts = {name: [row for row in rows if row["group"] == name] for name in GROUPS} | {"all": list(rows)}
    return {
        name: {key: share([float(row[key]) for row in part], _users(part)) for key in SHARES}
        | {key: mean([float(row[key]) for row in part], _users(part)) for key in MEANS}
        | {"variety": variety(part)}
        for name, part in parts.items()
    }


def gain(before: Sequence[Row], after: Sequence[Row], key: str = "utility") -> Estimate:
    """Mean difference of two models on the panel, paired by group, person and turn, clustered by person.

    Args:
        before: rows of one model.
        after: of the other.
        key: the figure.

    Raises:
        ValueError: the two were not asked the same.
    """

    def place(row: Row) -> tuple[str, str, int]:
        return row["group"], row["user_id"], row["turn"]

    old = {place(row): row for row in before}
    if sorted(old) != sorted(map(place, after)):
        raise ValueError("the panel did not ask both models the same")
    return mean([float(row[key]) - float(old[place(row)][key]) for row in after], _users(after))
