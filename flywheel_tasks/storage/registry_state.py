"""What the registry knows, and the only ways it may change: checked functions from state to state."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Decision = Literal["approve", "reject", "timeout"]
Kind = Literal["launch", "promotion"]


class RegistryError(ValueError):
    """A change that the registry's rules refuse; the message names the rule."""


class Record(BaseModel):
    """Base of all records: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DvcRef(Record):
    """Where DVC finds a model's files: the output's path and its hash (``<md5>.dir`` for a folder)."""

    path: Name
    md5: Name


class ModelRef(Record):
    """A model: which generation made it, what it is, and from which code and data.

    ``digest`` is the tree digest of its folder; ``data_version`` the digest of the logs it learned from.
    """

    generation: Name
    digest: Digest
    dvc: DvcRef | None
    code_version: Name
    data_version: Name


class Arm(Record):
    """One arm of an experiment: its share of all users, and the model they talk to."""

    name: Literal["control", "candidate"]
    share: Annotated[float, Field(gt=0.0, le=0.5)]
    model: Name
    digest: Digest


class Plan(Record):
    """The plan of an A/B test (``launch/plan.json``), bound to the model and verdict that were approved."""

    experiment: Name
    generation: Name
    salt: Name
    layer: Name
    arms: tuple[Arm, Arm]
    verdict_digest: Digest
    model_digest: Digest

    @model_validator(mode="after")
    def _whole(self) -> "Plan":
        if [arm.name for arm in self.arms] != ["control", "candidate"]:
            raise ValueError("arms must be control, then candidate")
        if self.arms[1].digest != self.model_digest:
            raise ValueError("the candidate arm's digest is not model_digest")
        return self


class Analysis(Record):
    """What an analysis found, and the digest of the file that says it in full."""

    result: Literal["valid", "invalid"]
    digest: Digest
    reasons: tuple[str, ...]


class Experiment(Record):
    """One A/B test."""

    plan: Plan
    status: Literal["running", "promoted", "rolled_back"]
    started_at: AwareDatetime
    ends_at: AwareDatetime
    started_by: Name
    analysis: Analysis | None = None
    end_reason: str | None = None


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

    ``previous`` is the champion before the last promotion: what :func:`restored` goes back to.
    """

    champion: ModelRef | None = None
    previous: ModelRef | None = None
    candidate: ModelRef | None = None
    experiments: dict[str, Experiment] = {}
    approvals: tuple[Approval, ...] = ()

    def running(self) -> Experiment | None:
        """The experiment that runs now, if any."""
        return next((e for e in self.experiments.values() if e.status == "running"), None)

    def approval(self, kind: Kind, generation: str) -> Approval | None:
        """The last answer given for a generation: a later no undoes an earlier yes."""
        matching = [a for a in self.approvals if a.kind == kind and a.generation == generation]
        return matching[-1] if matching else None

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
    if (other := state.running()) is not None:
        raise RegistryError(f"experiment {other.plan.experiment} is running; one at a time")
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
    state.require_approval("launch", plan.generation, plan.model_digest, plan.verdict_digest)
    experiment = Experiment(plan=plan, status="running", started_at=at, ends_at=ends_at, started_by=by)
    return state.with_(candidate=candidate, experiments={**state.experiments, plan.experiment: experiment})


def _running(state: State, generation: str) -> tuple[str, Experiment, ModelRef]:
    experiment = state.running()
    if experiment is None or experiment.plan.generation != generation or state.candidate is None:
        raise RegistryError(f"no experiment of generation {generation} is running")
    return experiment.plan.experiment, experiment, state.candidate


def _ended(state: State, name: str, **changes: Any) -> dict[str, Experiment]:
    return {**state.experiments, name: state.experiments[name].model_copy(update=changes)}


def analysed(state: State, generation: str, analysis: Analysis) -> State:
    """The running experiment gets its analysis; a new one replaces it."""
    name, _, _ = _running(state, generation)
    return state.with_(experiments=_ended(state, name, analysis=analysis))


def promoted(state: State, generation: str) -> State:
    """The candidate becomes champion, given a valid analysis and an approval of exactly this model on it."""
    name, experiment, candidate = _running(state, generation)
    if experiment.analysis is None:
        raise RegistryError(f"experiment {name} has no recorded analysis")
    if experiment.analysis.result != "valid":
        raise RegistryError(f"experiment {name} is invalid: {'; '.join(experiment.analysis.reasons)}")
    state.require_approval("promotion", generation, candidate.digest, experiment.analysis.digest)
    return state.with_(
        champion=candidate,
        previous=state.champion,
        candidate=None,
        experiments=_ended(state, name, status="promoted"),
    )


def rolled_back(state: State, generation: str, reason: str) -> State:
    """The candidate is dropped and its experiment ends; the champion stays."""
    name, _, _ = _running(state, generation)
    return state.with_(
        candidate=None, experiments=_ended(state, name, status="rolled_back", end_reason=reason)
    )


def declined(state: State, generation: str) -> State:
    """A model that was never launched is given up: nothing changes. Refused for a launched one."""
    if any(experiment.plan.generation == generation for experiment in state.experiments.values()):
        raise RegistryError(f"generation {generation} has been launched; roll it back")
    return state


def restored(state: State) -> State:
    """The champion before the last promotion is champion again. Refused while an experiment runs."""
    if (experiment := state.running()) is not None:
        raise RegistryError(f"experiment {experiment.plan.experiment} is running; roll it back first")
    if state.previous is None:
        raise RegistryError("there is no earlier champion to go back to")
    return state.with_(champion=state.previous, previous=None)
