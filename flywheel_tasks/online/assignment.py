"""Which arm of which A/B test a user is in: a pure function of the plans and the user's id."""

import hashlib
from collections.abc import Mapping
from typing import Any

from flywheel_tasks.storage.digests import bytes_digest

_BITS = 64


def _point(salt: str, user_id: str) -> float:
    """A user's point of [0, 1): the first 64 bits of SHA-256 of salt and id; another salt, another draw."""
    # The length before the salt keeps (salt "a", user "bc") and (salt "ab", user "c") apart.
    salted = f"{len(salt)}:{salt}{user_id}".encode()
    return int.from_bytes(hashlib.sha256(salted).digest()[: _BITS // 8], "big") / 2**_BITS


def assign(plan: Mapping[str, Any], user_id: str) -> str | None:
    """The arm of a user under one plan.

    The arms lie side by side in [0, 1), in the plan's order. Users whom an earlier test of the layer took
    (``excludes``) are left out, and the arms are stretched over the rest, so that each keeps its share of *all*
    users. A user's arm never changes during a test.

    Args:
        plan: an A/B test's plan: ``salt``, ``arms`` with ``name`` and ``share``, and perhaps ``excludes`` with ``salt``
            and ``below`` (:class:`flywheel_tasks.storage.experiment_records.Draw`).
        user_id: the user, as in the raw logs.

    Returns:
        the arm's name; None for a user outside the test.

    Raises:
        ValueError: the arms need more users than are free.
    """
    free = 1.0
    for draw in plan.get("excludes", ()):
        if _point(draw["salt"], user_id) < draw["below"]:
            return None
        free *= 1.0 - draw["below"]
    if sum(arm["share"] for arm in plan["arms"]) > free + 1e-9:
        raise ValueError(f"experiment {plan.get('experiment')}: the arms' shares sum to more than {free:g}")
    point, end = _point(plan["salt"], user_id) * free, 0.0
    for arm in plan["arms"]:
        end += arm["share"]
        if point < end:
            return str(arm["name"])
    return None


def staff_key(salt: str, user_id: str) -> str:
    """Under which the registry keeps an override: a digest of salt and id, so that it holds no user id."""
    return bytes_digest(f"staff:{len(salt)}:{salt}{user_id}".encode())


def arm_of(
    plan: Mapping[str, Any], overrides: Mapping[str, str | None], user_id: str
) -> tuple[str | None, bool]:
    """The arm of a user as it is served, staff by override included.

    Args:
        plan: as in :func:`assign`.
        overrides: arms (None: none) of the test's staff, by :func:`staff_key`.
        user_id: as in the raw logs.

    Returns:
        the arm, or None; and whether it was drawn. Only then is its exposure logged: staff by override are no part of
        the test's population.
    """
    if overrides and (key := staff_key(plan["salt"], user_id)) in overrides:
        return overrides[key], False
    return assign(plan, user_id), True
