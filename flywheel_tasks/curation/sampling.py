"""Caps and stratified samples whose choice depends on the seed and the ids only."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

Row = Mapping[str, Any]
Item = TypeVar("Item")
Stratum = TypeVar("Stratum", bound=Hashable)


def draw_order(seed: int, purpose: str, key: str) -> str:
    """A pseudo-random sort key: the same for the same seed, purpose and id, whatever else is in the data."""
    return hashlib.sha256(f"{seed}|{purpose}|{key}".encode()).hexdigest()


def in_turns(items: Sequence[Item], whose: Callable[[Item], Hashable]) -> list[Item]:
    """Items in rounds: one of every owner before a second of any, both in the given order.

    Args:
        items: to put in order.
        whose: the owner of an item.
    """
    queues: dict[Hashable, list[Item]] = {}
    for item in items:
        queues.setdefault(whose(item), []).append(item)
    rounds = max((len(queue) for queue in queues.values()), default=0)
    return [queue[turn] for turn in range(rounds) for queue in queues.values() if turn < len(queue)]


def largest_remainder(weights: Mapping[Stratum, float], total: int) -> dict[Stratum, int]:
    """Whole numbers that add up to ``total``, in proportion to the weights (Hamilton's method; ties by key).

    Args:
        weights: at least one above 0.
        total: to share out.
    """
    whole = sum(weights.values())
    exact = {key: total * weight / whole for key, weight in weights.items()}
    shares = {key: int(value) for key, value in exact.items()}
    order = sorted(exact, key=lambda key: (shares[key] - exact[key], str(key)))
    for key in order[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def quotas(
    target: Mapping[Stratum, float], available: Mapping[Stratum, int], total: int
) -> dict[Stratum, int]:
    """Rows to take of each stratum: in proportion to the target, never more than there are.

    What a short stratum cannot give is shared out among the others, again in proportion.

    Args:
        target: weight of each stratum, for example its count in the raw traffic.
        available: rows of each stratum that can be taken.
        total: rows wanted; all are taken if there are fewer.
    """
    taken: dict[Stratum, int] = dict.fromkeys(sorted(available, key=str), 0)
    left = min(total, sum(available.values()))
    while left:
        room = {key: float(target.get(key, 0)) for key in taken if available[key] > taken[key]}
        if not any(room.values()):
            room = dict.fromkeys(room, 1.0)  # what is left is in strata that the target does not know
        for key, share in largest_remainder(room, left).items():
            step = min(share, available[key] - taken[key])
            taken[key] += step
            left -= step
    return taken


def stratified(
    rows: Sequence[Row],
    stratum: Callable[[Row], Stratum],
    target: Mapping[Stratum, float],
    total: int,
    seed: int,
    purpose: str,
) -> set[str]:
    """Prompt ids of a stratified sample.

    Args:
        rows: with ``prompt_id``.
        stratum: of a row.
        target: weight of each stratum.
        total: rows wanted.
        seed: of the choice within a stratum.
        purpose: keeps this draw apart from others of the same seed.
    """
    take = quotas(target, Counter(map(stratum, rows)), total)
    by_stratum: dict[Stratum, list[str]] = defaultdict(list)
    for row in rows:
        by_stratum[stratum(row)].append(row["prompt_id"])
    return {
        prompt
        for key, ids in by_stratum.items()
        for prompt in sorted(ids, key=lambda item: draw_order(seed, purpose, item))[: take[key]]
    }
