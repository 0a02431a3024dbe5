"""Which arm of which A/B test a user is in: a pure function of the plans and the user's id."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flywheel_tasks.storage.digests import bytes_digest
from flywheel_tasks.storage.experiment_records import Experiment
from flywheel_tasks.storage.registry_state import State

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


@dataclass(frozen=True)
class Assignment:
    """What a user is served.

    Attributes:
        experiment: the test.
        generation: whose candidate it tests.
        arm: control or candidate.
        model: id of the arm's model.
        digest: tree digest of the arm's model.
        drawn: by chance; False for a member of staff by override, whose exposures are not logged.
    """

    experiment: str
    generation: str
    arm: str
    model: str
    digest: str
    drawn: bool


class Assigner:
    """Assigns users to the arms of the running tests; made anew when the registry has changed.

    Args:
        experiments: the running ones (:meth:`flywheel_tasks.storage.registry_state.State.all_running`).
    """

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._tests = [
            (
                experiment.plan,
                experiment.plan.model_dump(mode="json"),
                {item.user: item.arm for item in experiment.overrides},
            )
            for experiment in experiments
        ]

    @classmethod
    def of(cls, state: State) -> "Assigner":
        """The assigner of the registry as it is."""
        return cls(state.all_running())

    def assign(self, user_id: str, layer: str = "policy") -> Assignment | None:
        """The test and arm of a user in a layer: at most one, as the tests of a layer share no users.

        Args:
            user_id: as in the raw logs.
            layer: tests of other layers are drawn independently.

        Returns:
            None for a user in no test, who gets the champion.
        """
        tests = [test for test in self._tests if test[0].layer == layer]
        for plan, _, overrides in tests:
            if overrides and (key := staff_key(plan.salt, user_id)) in overrides:
                return _assignment(plan, overrides[key], drawn=False)
        for plan, document, _ in tests:
            if (arm := assign(document, user_id)) is not None:
                return _assignment(plan, arm, drawn=True)
        return None


def _assignment(plan: Any, name: str | None, *, drawn: bool) -> Assignment | None:
    if name is None:
        return None
    arm = next(arm for arm in plan.arms if arm.name == name)
    return Assignment(plan.experiment, plan.generation, arm.name, arm.model, arm.digest, drawn)


def exposure_event(
    assignment: Assignment, *, user_id: str, event_id: str, source: str, time: datetime | None = None
) -> dict[str, str] | None:
    """The raw log event of an exposure, to be logged when the arm's reply is really shown.

    Args:
        assignment: what was shown.
        user_id: to whom, as in the raw logs.
        event_id: unique over all events.
        source: internal or user.
        time: when; by default now.

    Returns:
        the event (docs/raw-logs.md); None for staff by override, who are no part of the test's population.
    """
    if not assignment.drawn:
        return None
    return {
        "event_id": event_id,
        "type": "exposure",
        "time": (time or datetime.now(UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "source": source,
        "user_id": user_id,
        "experiment": assignment.experiment,
        "arm": assignment.arm,
    }
