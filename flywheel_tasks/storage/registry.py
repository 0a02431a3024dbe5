"""The registry is its history: every change is a new object, created only if its number is still free.

``changes/00000042.json`` holds ``{sequence, at, by, kind, detail, state, writer}``. The state of the highest
number is the registry now. Two writers cannot both create one number (:mod:`flywheel_tasks.storage.objects`),
so no change is lost; the rules of each change are in :mod:`flywheel_tasks.storage.registry_state`.
"""

import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, ValidationError

from flywheel_tasks.storage import registry_state as rules
from flywheel_tasks.storage.champions import earlier_champion
from flywheel_tasks.storage.objects import Exists, MissingObjectError, ObjectStore, open_store
from flywheel_tasks.storage.registry_state import (
    Analysis,
    Approval,
    Decision,
    Experiment,
    GuardrailCheck,
    Kind,
    ModelRef,
    Override,
    Plan,
    Record,
    RegistryError,
    State,
)

PROFILE = "profile.json"  # of a launched generation's data
SPLIT = "split.json"  # how a launched generation's users were split, and which prompts judged it
REWARD_MODELS = "reward_models.json"  # of a launched generation; the next ones go on from them
PAIRS = (
    "pairs.json"  # where the preference pairs of a launched generation are; later ones learn from them, too
)
_CHANGES = "changes/"
_ATTEMPTS = 200
_LONGEST_NAME = 200  # as the records have it


def evidence_name(verdict_digest: str) -> str:
    """Name under which verdict and metrics of a generation's model with this verdict are kept."""
    return f"evidence-{verdict_digest.removeprefix('sha256:')}.json"


class RegistryConflict(RuntimeError):
    """Another change came first; read the registry again and decide anew."""


class Change(Record):
    """One entry of the history. ``writer`` makes every write unique, so that a writer can tell its own."""

    sequence: Annotated[int, Field(ge=1)]
    at: AwareDatetime
    by: rules.Name
    kind: rules.Name
    detail: dict[str, Any]
    state: State
    writer: rules.Name


class Registry:
    """Reads and changes the registry.

    Args:
        store: where its objects live.
        now: the clock, UTC.
    """

    def __init__(self, store: ObjectStore, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now

    # Reading

    def history(self) -> list[Change]:
        """All changes, oldest first.

        Raises:
            RegistryError: a change is missing, or is not what its name says.
        """
        return [self._read(number, key) for number, key in enumerate(self._keys(), start=1)]

    def state(self) -> State:
        """The registry now; an empty state before the first change."""
        return self.head()[1]

    def head(self) -> tuple[int, State]:
        """How many changes there have been, and the state after them."""
        keys = self._keys()
        return (len(keys), self._read(len(keys), keys[-1]).state) if keys else (0, State())

    def _keys(self) -> list[str]:
        keys = self._store.list(_CHANGES)
        for number, key in enumerate(keys, start=1):
            if key != _key(number):
                raise RegistryError(f"registry: {_key(number)} is missing or {key} does not belong")
        return keys

    def _read(self, number: int, key: str) -> Change:
        try:
            change = Change.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise RegistryError(f"registry: {key}: {error}") from error
        if change.sequence != number:
            raise RegistryError(f"registry: {key} holds change {change.sequence}")
        return change

    # Changing

    def _change(
        self,
        kind: str,
        by: str,
        detail: dict[str, Any],
        step: Callable[[State], State],
        *,
        at: datetime | None = None,
        retry: bool = False,
    ) -> State:
        """Add one change.

        Args:
            kind: its name.
            by: who makes it.
            detail: what a reader of the history wants to know.
            step: the checked transition; called anew for every attempt, on the state then found.
            at: when; by default now.
            retry: try again after a lost race. Safe only for a change that means the same after any other.

        Raises:
            RegistryError: the rules refuse it, or nobody is named.
            RegistryConflict: another change came first.
        """
        _check_name(by)
        when = at or self._now()
        for attempt in range(_ATTEMPTS):
            number, before = self.head()
            change = Change(
                sequence=number + 1,
                at=when,
                by=by,
                kind=kind,
                detail=detail,
                state=step(before),
                writer=uuid.uuid4().hex,
            )
            try:
                self._store.create(_key(change.sequence), change.model_dump_json(indent=2).encode() + b"\n")
                return change.state
            except Exists:
                if not retry:
                    raise RegistryConflict(
                        f"{kind}: another change came first; look again and repeat"
                    ) from None
                time.sleep(random.uniform(0, 0.01 * min(attempt + 1, 10)))
        raise RegistryConflict(f"{kind}: lost {_ATTEMPTS} races")

    def bootstrap(self, champion: ModelRef, *, by: str) -> State:
        """Set the first champion."""
        detail = {"generation": champion.generation, "digest": champion.digest}
        return self._change("bootstrap", by, detail, lambda s: rules.bootstrapped(s, champion))

    def record_approval(
        self,
        kind: Kind,
        *,
        generation: str,
        model_digest: str,
        decision: Decision,
        by: str,
        verdict_digest: str | None = None,
        analysis_digest: str | None = None,
        at: datetime | None = None,
    ) -> State:
        """Record an answer, with the digests of what was shown. It holds after any other change: retried.

        The same answer (same ``at``) is recorded once: a repeated task adds nothing.
        """
        _check_name(by)
        when = at or self._now()
        approval = Approval(
            kind=kind,
            generation=generation,
            model_digest=model_digest,
            verdict_digest=verdict_digest,
            analysis_digest=analysis_digest,
            decision=decision,
            by=by,
            at=when,
        )
        if approval in (state := self.state()).approvals:
            return state
        detail = approval.model_dump(mode="json", exclude_none=True)
        return self._change(
            f"approval_{kind}", by, detail, lambda s: rules.approved(s, approval), at=when, retry=True
        )

    def start_experiment(
        self, plan: Plan, candidate: ModelRef, *, by: str, duration: timedelta
    ) -> Experiment:
        """Start an approved A/B test against the champion."""
        at = self._now()
        state = self._change(
            "experiment_started",
            by,
            {"experiment": plan.experiment, "generation": plan.generation, "model_digest": plan.model_digest},
            lambda s: rules.started(s, plan, candidate, by=by, at=at, ends_at=at + duration),
            at=at,
        )
        return state.experiments[plan.experiment]

    def record_analysis(self, generation: str, analysis: Analysis, *, by: str) -> State:
        """Record what the analysis of the running experiment found."""
        detail = {"generation": generation, **analysis.model_dump(mode="json")}
        return self._change(
            "analysis", by, detail, lambda s: rules.analysed(s, generation, analysis), retry=True
        )

    def record_check(self, generation: str, check: GuardrailCheck, *, by: str) -> State:
        """Record a look at the running experiment's guardrails."""
        detail = {"generation": generation, **check.model_dump(mode="json")}
        return self._change(
            "guardrail_check", by, detail, lambda s: rules.checked(s, generation, check), retry=True
        )

    def override(self, generation: str, override: Override, *, by: str, remove: bool = False) -> State:
        """Give a member of staff an arm of the running experiment, or take that back."""
        detail = {"generation": generation, "arm": override.arm, "removed": remove}
        return self._change(
            "override",
            by,
            detail,
            lambda s: rules.overridden(s, generation, override, remove=remove),
            retry=True,
        )

    def promote(self, generation: str, *, by: str) -> State:
        """Make the candidate champion."""
        return self._change(
            "promoted", by, {"generation": generation}, lambda s: rules.promoted(s, generation)
        )

    def rollback(self, generation: str, reason: str, *, by: str) -> State:
        """Drop the candidate; the champion stays."""
        detail = {"generation": generation, "reason": reason}
        return self._change("rolled_back", by, detail, lambda s: rules.rolled_back(s, generation, reason))

    def decline(self, generation: str, reason: str, *, by: str, verdict_digest: str | None = None) -> State:
        """Note that a generation's model is not launched; champion and candidate stay as they are.

        Args:
            generation: which one.
            reason: for the history.
            by: who declines.
            verdict_digest: of the gate's verdict on the model, if there is one.

        Raises:
            RegistryError: it has been launched.
        """
        detail = {"generation": generation, "reason": reason}
        if verdict_digest is not None:
            detail["verdict_digest"] = verdict_digest
        return self._change("declined", by, detail, lambda s: rules.declined(s, generation), retry=True)

    def restore(self, reason: str, *, by: str, to: str | None = None) -> State:
        """Make an earlier champion champion again, so that a restoration can be taken back too; ends all running tests.

        Args:
            reason: for the history.
            by: who does it.
            to: its generation (``base``: what the registry began with); None: the one before the last promotion.

        Raises:
            RegistryError: it has never been champion or is it now, or there is none before.
        """
        model = None if to is None else earlier_champion((change.state for change in self.history()), to)
        detail: dict[str, Any] = (
            {"reason": reason} if model is None else {"reason": reason, "to": model.generation}
        )

        def step(found: State) -> State:
            if ended := [e.plan.generation for e in found.all_running()]:
                detail["ended"] = ended  # as of the state that the change is made from
            return rules.restored(found, reason, model)

        return self._change("restored", by, detail, step)

    # What a generation started from

    def put_generation(self, generation: str, name: str, data: bytes) -> None:
        """Keep a file of a generation's inputs; the same bytes again are accepted.

        Raises:
            RegistryError: other bytes are kept under this name.
        """
        key = f"generations/{generation}/{name}"
        try:
            self._store.create(key, data)
        except Exists:
            if self._store.get(key) != data:
                raise RegistryError(f"registry: {key} is kept already, with other contents") from None

    def get_generation(self, generation: str, name: str) -> bytes:
        """A kept file of a generation's inputs.

        Raises:
            RegistryError: there is none.
        """
        key = f"generations/{generation}/{name}"
        try:
            return self._store.get(key)
        except MissingObjectError:
            raise RegistryError(f"registry: there is no {key}") from None

    def find_generation(self, generation: str, name: str) -> bytes | None:
        """A kept file of a generation; None if there is none."""
        try:
            return self._store.get(f"generations/{generation}/{name}")
        except MissingObjectError:
            return None

    def generations(self) -> list[str]:
        """Ids of generations with kept inputs, sorted."""
        return sorted({key.split("/")[1] for key in self._store.list("generations/")})


def _check_name(by: str) -> None:
    if not by.strip() or len(by) > _LONGEST_NAME:
        raise RegistryError(f"the history says who made a change: a name of 1 to {_LONGEST_NAME} characters")


def _key(number: int) -> str:
    return f"{_CHANGES}{number:08d}.json"


def open_registry(location: str, root: Path) -> Registry:
    """The registry of a setting (``registry.location``), relative to the workspace."""
    return Registry(open_store(location, root))
