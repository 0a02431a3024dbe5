"""Which arm of an A/B test a user is in: a pure function of the plan and the user's id."""

import hashlib
from collections.abc import Mapping
from typing import Any

_BITS = 64


def assign(plan: Mapping[str, Any], user_id: str) -> str | None:
    """The arm of a user.

    The first 64 bits of SHA-256 of salt and user id are a point of [0, 1), where the arms lie side by side in
    the plan's order. Another salt is another, independent, draw; a user's arm never changes during a test.

    Args:
        plan: an A/B test's plan (``launch/plan.json``): ``salt``, and ``arms`` with ``name`` and ``share``.
        user_id: the user.

    Returns:
        the arm's name; None for a user outside the test.

    Raises:
        ValueError: the shares sum to more than one.
    """
    if sum(arm["share"] for arm in plan["arms"]) > 1.0 + 1e-9:
        raise ValueError(f"experiment {plan.get('experiment')}: the arms' shares sum to more than 1")
    # The length before the salt keeps (salt "a", user "bc") and (salt "ab", user "c") apart.
    salted = f"{len(plan['salt'])}:{plan['salt']}{user_id}".encode()
    point = int.from_bytes(hashlib.sha256(salted).digest()[: _BITS // 8], "big") / 2**_BITS
    end = 0.0
    for arm in plan["arms"]:
        end += arm["share"]
        if point < end:
            return str(arm["name"])
    return None
