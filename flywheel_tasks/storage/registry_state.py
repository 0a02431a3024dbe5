"""What the registry knows, and the only ways it may change: checked functions from state to state."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, model_validator

from flywheel_tasks.storage.experiment_records import (
    Analysis,
    Arm,
    Digest,
    Draw,
    DvcRef,
    Experiment,
    GuardrailCheck,
    ModelRef,
    Name,
    Override,
    Plan,
    Record,
    Rule,
)

__all__ = [
    "Analysis",
    "Approval",
    "Arm",
    "Decision",
    "Digest",
    "Draw",
    "DvcRef",
    "Experiment",
    "GuardrailCheck",
    "Kind",
    "ModelRef",
    "Name",
    "Override",
    "OvertakenError",
    "Plan",
    "Record",
    "RegistryError",
    "Rule",
    "State",
]

Decision = Literal["approve", "reject", "timeout"]
Kind = Literal["launch", "promotion"]


class RegistryError(ValueError):
    """A change that the registry's rules refuse; the message names the rule."""


class OvertakenError(RegistryError):
    """A change that another one came before; made anew, from what the registry says now, it may be taken."""


class Approval(Record):
    """Who answered what, when, and the digests shown: a verdict (launch) or an analysis (promotion)."""

    kind: Kind
    generation: Name
    model_digest: Digest
    verdict_digest: Digest | None = None
    analysis_digest: Digest | None = None
    decision: Decision
    by: Name
    at: AwareDatetime

    @model_validator(mode="after")
    def _shown(self) -> "Approval":
        shown = {"launch": self.verdict_digest, "promotion": self.analysis_digest}
        if shown.pop(self.kind) is None or any(shown.values()):
            raise ValueError("a launch shows a verdict_digest, a promotion an analysis_digest, and only that")
        return self

    @property
    def shown(self) -> tuple[str, str]:
        """Digests of the model and of the evidence that were shown."""
        return self.model_digest, str(self.verdict_digest or self.analysis_digest)


class State(Record):
    """All of the registry at one point of its history.

    ``previous`` is the champion before the last promotion: what :func:`restored` goes back to. ``candidates`` are
    the models in running tests, by generation.
    """

    champion: ModelRef | None = None
    previous: ModelRef | None = None
    candidates: dict[str, ModelRef] = Field(default={})
    experiments: dict[str, Experiment] = Field(default={})
    approvals: tuple[Approval, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_one_test(cls, data: Any) -> Any:
        """States written when only one test could run have ``candidate``."""
        if isinstance(data, Mapping) and "candidate" in data:
            one = data["candidate"]
            rest = {key: value for key, value in data.items() if key != "candidate"}
            return rest | {"candidates": {one["generation"]: one} if one else {}}
        return data

    @property
    def candidate(self) -> ModelRef | None:
        """The model of the running test that started last, if any."""
        experiment = self.running()
        return None if experiment is None else self.candidates.get(experiment.plan.generation)

    def all_running(self) -> tuple[Experiment, ...]:
        """The experiments that run now, in the order of their starts."""
        found = [e for e in self.experiments.values() if e.status == "running"]
        return tuple(sorted(found, key=lambda e: (e.started_at, e.plan.experiment)))

    def running(self, generation: str | None = None) -> Experiment | None:
        """The experiment of a generation if it runs; by default the running one that started last."""
        found = [e for e in self.all_running() if generation in (None, e.plan.generation)]
        return found[-1] if found else None

    def tested(self, generation: str) -> Experiment | None:
        """The last experiment of a generation, whether it runs or is over; None if it was never launched."""
        found = [e for e in self.experiments.values() if e.plan.generation == generation]
        return found[-1] if found else None

    def approval(self, kind: Kind, generation: str) -> Approval | None:
        """The last answer given for a generation: a later no undoes an earlier yes, also one recorded after it."""
        matching = [a for a in self.approvals if a.kind == kind and a.generation == generation]
        # Of answers given at the same moment, the one recorded last.
        return max(reversed(matching), key=lambda answer: answer.at, default=None)

    def require_approval(
        self, kind: Kind, generation: str, model_digest: str, evidence_digest: str
    ) -> Approval:
        """The approval of exactly this model on exactly this evidence.

        Raises:
            RegistryError: none is recorded, the last answer is no, or it was given to something else.
        """
        found = self.approval(kind, generation)
        hint = f"approve it in Airflow, or by `flywheel approve {kind} --by NAME`"
        if found is None:
            raise RegistryError(f"the {kind} of generation {generation} has no recorded approval; {hint}")
        if found.decision != "approve":
            raise RegistryError(
                f"the {kind} of generation {generation} was not approved: {found.decision} by {found.by} at "
                f"{found.at.isoformat()}"
            )
        if found.shown != (model_digest, evidence_digest):
            raise RegistryError(
                f"the {kind} of generation {generation} was approved for model {found.shown[0]} and evidence "
                f"{found.shown[1]}, but now they are {model_digest} and {evidence_digest}; {hint}"
            )
        return found

    def with_(self, **changes: Any) -> "State":
        """A copy with fields replaced."""
        return State.model_validate(self.model_dump() | changes)


def bootstrapped(state: State, champion: ModelRef) -> State:
    """The first champion. Refused when there is one."""
    if state.champion is not None:
        raise RegistryError(f"there is a champion already: generation {state.champion.generation}")
    return state.with_(champion=champion)


def approved(state: State, approval: Approval) -> State:
    """An answer is added, whatever it says."""
    return state.with_(approvals=(*state.approvals, approval))


def started(
    state: State, plan: Plan, candidate: ModelRef, *, by: str, at: datetime, ends_at: datetime
) -> State:
    """The experiment of an approved candidate against the champion begins."""
    if state.champion is None:
        raise RegistryError("there is no champion to test against")
    if plan.experiment in state.experiments:
        status = state.experiments[plan.experiment].status
        raise RegistryError(f"experiment {plan.experiment} has been run ({status}); open a new generation")
    if plan.arms[0].digest != state.champion.digest:
        raise RegistryError(
            f"the plan's control is {plan.arms[0].digest}, the champion is {state.champion.digest}"
        )
    if (candidate.generation, candidate.digest) != (plan.generation, plan.model_digest):
        raise RegistryError(f"the candidate is {candidate.digest}, the plan is for {plan.model_digest}")
    if ends_at < at:
        raise RegistryError("an experiment cannot end before it starts")
    beside = {e.plan.draw for e in state.all_running() if e.plan.layer == plan.layer}
    if beside != set(plan.excludes):
        names = ", ".join(sorted(draw.experiment for draw in beside)) or "none"
        raise OvertakenError(
            f"the tests that run in layer {plan.layer} have changed (now: {names}); start again"
        )
    state.require_approval("launch", plan.generation, plan.model_digest, plan.verdict_digest)
    experiment = Experiment(
        plan=plan,
        status="running",
        started_at=at,
        ends_at=ends_at,
        started_by=by,
        control=state.champion,
    )
    return state.with_(
        candidates={**state.candidates, plan.generation: candidate},
        experiments={**state.experiments, plan.experiment: experiment},
    )


def _running(state: State, generation: str) -> tuple[str, Experiment, ModelRef]:
    experiment = state.running(generation)
    if experiment is None or generation not in state.candidates:
        raise RegistryError(f"no experiment of generation {generation} is running")
    return experiment.plan.experiment, experiment, state.candidates[generation]


def _without(state: State, generation: str) -> dict[str, ModelRef]:
    return {name: model for name, model in state.candidates.items() if name != generation}


def _ended(state: State, name: str, **changes: Any) -> dict[str, Experiment]:
    return {**state.experiments, name: state.experiments[name].model_copy(update=changes)}


def analysed(state: State, generation: str, analysis: Analysis) -> State:
    """The running experiment gets its analysis; a new one replaces it."""
    name, _, _ = _running(state, generation)
    return state.with_(experiments=_ended(state, name, analysis=analysis))


def checked(state: State, generation: str, check: GuardrailCheck) -> State:
    """The running experiment gets a look; a later look at the same day replaces the earlier one, but for a stop.

    A crossed sequential bound is a rejection at the rule's level; looking again until it is not would undo that level.
    """
    name, experiment, _ = _running(state, generation)
    if any(item.day == check.day and item.result == "stop" for item in experiment.checks):
        return state
    others = [item for item in experiment.checks if item.day != check.day]
    checks = tuple(sorted([*others, check], key=lambda item: item.day))
    return state.with_(experiments=_ended(state, name, checks=checks))


def overridden(state: State, generation: str, override: Override, *, remove: bool) -> State:
    """A member of staff gets an arm of the running experiment by name, or is drawn like anyone again."""
    name, experiment, _ = _running(state, generation)
    others = tuple(item for item in experiment.overrides if item.user != override.user)
    return state.with_(experiments=_ended(state, name, overrides=others if remove else (*others, override)))


def promoted(state: State, generation: str) -> State:
    """The candidate becomes champion, given a valid analysis and an approval of exactly this model on it."""
    name, experiment, candidate = _running(state, generation)
    if experiment.analysis is None:
        raise RegistryError(f"experiment {name} has no recorded analysis")
    if experiment.analysis.result != "valid":
        raise RegistryError(f"experiment {name} is invalid: {'; '.join(experiment.analysis.reasons)}")
    if experiment.analysis.advice == "reject":
        raise RegistryError(f"the rule of experiment {name} rejects the candidate; roll it back")
    if harm := next((item for item in experiment.checks if item.result == "stop"), None):
        why = "; ".join(harm.reasons)
        raise RegistryError(
            f"a guardrail of experiment {name} said stop on day {harm.day + 1} ({why}); roll it back"
        )
    control = experiment.plan.arms[0].digest
    if state.champion is None or state.champion.digest != control:
        found = None if state.champion is None else state.champion.digest
        raise RegistryError(
            f"experiment {name} compared the candidate with {control}, but the champion is now {found}; "
            "roll it back and test against the champion of now"
        )
    state.require_approval("promotion", generation, candidate.digest, experiment.analysis.digest)
    return state.with_(
        champion=candidate,
        previous=state.champion,
        candidates=_without(state, generation),
        experiments=_ended(state, name, status="promoted"),
    )


def rolled_back(state: State, generation: str, reason: str) -> State:
    """The candidate is dropped and its experiment ends; the champion stays."""
    name, _, _ = _running(state, generation)
    return state.with_(
        candidates=_without(state, generation),
        experiments=_ended(state, name, status="rolled_back", end_reason=reason),
    )


def declined(state: State, generation: str) -> State:
    """A model that was never launched is given up: nothing changes. Refused for a launched one."""
    if state.tested(generation) is not None:
        raise RegistryError(f"generation {generation} has been launched; roll it back")
    return state


# How the reason begins for which a test ended with the champion.
WITH_CHAMPION = "champion rolled back: "


def restored(state: State, reason: str, to: ModelRef | None = None) -> State:
    """The champion before the last promotion, or one of before that, is champion again, and no test goes on.

    Whoever goes back wants one model served, and the tests that run compare with the champion that goes.
    """
    if (again := to or state.previous) is None:
        raise RegistryError(
            "there is no champion of just before to go back to; name an earlier one with --to"
        )
    ended = {"status": "rolled_back", "end_reason": WITH_CHAMPION + reason}
    over = {e.plan.experiment: e.model_copy(update=ended) for e in state.all_running()}
    return state.with_(
        champion=again, previous=None, candidates={}, experiments={**state.experiments, **over}
    )
