"""What the panel said of a model, with intervals: true utility, and what it is made of."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from flywheel_tasks.campaign.folder import CampaignError
from flywheel_tasks.evaluation.intervals import Estimate, mean, share

CARDS = 20  # of the traffic, which the panel talks to; of the other groups half as many
GROUPS = {
    "training": "training cards",
    "characters": "unseen characters",
    "wordings": "unseen wordings",
}
SHARES = ("instruction_following", "instruction_violation", "false_refusal", "templated")
MEANS = ("utility", "words", "emoji")
Row = Mapping[str, Any]


def check_people(users: int) -> None:
    """Refuse a number of people by which some cards of the panel would count more than others.

    Raises:
        CampaignError: it is no multiple of :data:`CARDS`.
    """
    if users % CARDS:
        raise CampaignError(
            f"campaign.panel_users is {users}: not a multiple of {CARDS}, the cards of the traffic, "
            "so some cards would count more than others in the true utility"
        )


def _clusters(rows: Sequence[Row]) -> list[int]:
    """A number for each row, the same where rows share a person or a card, also through rows between them.

    A model speaks alike whoever asks a card, so people with one card are not independent; nor are, over several
    groups, the cards of one person. In one group these are its cards.
    """
    nodes: dict[tuple[str, str], int] = {}
    ends = [[nodes.setdefault((key, row[key]), len(nodes)) for row in rows] for key in ("user_id", "card_id")]
    edges = coo_array((np.ones(len(rows)), ends), shape=(len(nodes), len(nodes)))
    joined = connected_components(edges, directed=False)[1]
    return [int(joined[node]) for node in ends[0]]


def surely(estimate: Estimate) -> Literal["better", "worse", "untold"]:
    """What the 95% interval of a difference says of its sign."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None or low <= 0 <= high:
        return "untold"
    return "better" if low > 0 else "worse"


def variety(rows: Sequence[Row]) -> float | None:
    """Share of different word pairs among all word pairs of the replies (distinct-2, Li et al. 2016).

    It falls with the amount of text, so compare models that answered the same number of messages at like length.
    """
    found = [pair for row in rows for pair in pairwise(row["reply"].lower().split())]
    return len(set(found)) / len(found) if found else None


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Figures by group and over ``all`` groups, with 95% intervals clustered by card (see docs/campaign.md).

    Args:
        rows: of ``flywheel simulate panel``.
    """
    parts = {name: [row for row in rows if row["group"] == name] for name in GROUPS} | {"all": list(rows)}
    found: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        clusters = _clusters(part)
        found[name] = {key: share([float(row[key]) for row in part], clusters) for key in SHARES}
        found[name] |= {key: mean([float(row[key]) for row in part], clusters) for key in MEANS}
        found[name]["variety"] = variety(part)
    return found


def gain(before: Sequence[Row], after: Sequence[Row], key: str = "utility") -> Estimate:
    """Mean difference of two models on the panel, paired by group, person and turn, clustered by card.

    Args:
        before: rows of one model.
        after: of the other.
        key: the figure.

    Raises:
        ValueError: the two were not asked the same.
    """

    def place(row: Row) -> tuple[str, str, str, int]:
        return row["group"], row["user_id"], row["card_id"], row["turn"]

    old = {place(row): row for row in before}
    if sorted(old) != sorted(map(place, after)):
        raise ValueError("the panel did not ask both models the same")
    return mean([float(row[key]) - float(old[place(row)][key]) for row in after], _clusters(after))
