"""Records of A/B tests: what is planned and fixed before the start, what was looked at, what was found."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

# Test days that an analysis can tell apart: they are columns of its table of users.
MOST_DAYS = 60
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
ArmName = Literal["control", "candidate"]
# What an analysis advises under the plan's rule; an invalid one advises nothing.
Advice = Literal["promote", "inconclusive", "reject"]


class Record(BaseModel):
    """Base of all records: frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DvcRef(Record):
    """Where DVC finds a model's files: the output's path and its hash (``<md5>.dir`` for a folder)."""

    path: Name
    md5: Name


class ModelRef(Record):
    """A model: which generation made it, what it is, and from which code and data.

    ``digest`` is the tree digest of its folder; ``code_version`` is git's; ``data_version`` is the digest of
    ``dvc.lock``, which has the hash of everything it was made from (of the first model: the setting ``base.policy``).
    """

    generation: Name
    digest: Digest
    dvc: DvcRef | None
    code_version: Name
    data_version: Name


class Arm(Record):
    """One arm of an experiment: its share of all users, and the model they talk to."""

    name: ArmName
    share: Annotated[float, Field(gt=0.0, le=0.5)]
    model: Name
    digest: Digest


class Rule(Record):
    """How a test will be decided. It is part of the plan: nothing of it changes once the test has started.

    Attributes:
        alpha: significance level of the primary metrics together; intervals are at ``1 - alpha``.
        estimate: which of the two estimates decides; both are always shown.
        primary: success metrics. A better one (Holm-corrected) and none worse: promote.
        guardrails: metrics whose harm, shown at ``guardrail_alpha``, rejects the candidate.
        guardrail_alpha: of all guardrails and all looks together (sequential bound), spent apart from ``alpha``.
        tolerated_fallback: share of replies that the champion may give in the candidate's place; harm is a share that
            is shown to be larger. Control has none by design: a single one in millions would else be a difference.
        tolerated_latency_percent: by how much the candidate's replies may take longer; harm is a mean latency that is
            shown to be longer than that. A larger model would else be rejected for any time that can be measured.
        min_users_per_arm: fewer make the test invalid.
        planned_users: users of both arms that the test is planned for; the sequential bounds are tightest there.
        pre_days: days before the start whose activity is the covariate of CUPED and of the balance check.
        include_sources: sources of exposures that count.
        duration_minutes: how long it runs.
    """

    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    estimate: Literal["cuped", "raw"] = "cuped"
    primary: Annotated[tuple[Name, ...], Field(min_length=1)] = ("breadth", "depth")
    guardrails: tuple[Name, ...] = (
        "thumb_down_per_reply",
        "regenerate_per_reply",
        "report_per_reply",
        "safety_violation_per_reply",
        "fallback_per_reply",
        "latency_ms",
    )
    guardrail_alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    tolerated_fallback: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    tolerated_latency_percent: Annotated[float, Field(ge=0.0)] = 10.0
    min_users_per_arm: Annotated[int, Field(gt=0)] = 20
    planned_users: Annotated[int, Field(gt=1)] = 10_000
    pre_days: Annotated[int, Field(ge=0, le=90)] = 14
    include_sources: tuple[Literal["internal", "user"], ...] = ("user",)
    duration_minutes: Annotated[float, Field(gt=0.0)] = 10_080.0


class Draw(Record):
    """Users that another test of the layer took before: those with a point below ``below`` under its salt."""

    experiment: Name
    salt: Name
    below: Annotated[float, Field(gt=0.0, le=1.0)]


class Plan(Record):
    """The plan of an A/B test, bound to the model and verdict that were approved.

    ``launch/plan.json`` has it without ``excludes`` and ``read_from``; the start adds those: the draws of the tests of
    the same layer that were running then, and where the events come from, so that nobody reads others until they fit.
    """

    experiment: Name
    generation: Name
    salt: Name
    layer: Name
    arms: tuple[Arm, Arm]
    verdict_digest: Digest
    model_digest: Digest
    rule: Rule = Rule()
    excludes: tuple[Draw, ...] = ()
    read_from: str = ""

    @field_validator("rule", mode="before")
    @classmethod
    def _as_it_was_fixed(cls, rule: Any) -> Any:
        """A test that was started before latency was tolerated goes on without: what it has is its rule."""
        return {"tolerated_latency_percent": 0.0, **rule} if isinstance(rule, Mapping) else rule

    @model_validator(mode="after")
    def _whole(self) -> "Plan":
        if [arm.name for arm in self.arms] != ["control", "candidate"]:
            raise ValueError("arms must be control, then candidate")
        if self.arms[1].digest != self.model_digest:
            raise ValueError("the candidate arm's digest is not model_digest")
        if self.share > self.free + 1e-9:
            others = ", ".join(draw.experiment for draw in self.excludes)
            raise ValueError(
                f"the arms take {self.share:.3g} of all users, but layer {self.layer} has {self.free:.3g} left"
                + (f" beside {others}" if others else "")
            )
        return self

    @property
    def share(self) -> float:
        """Share of all users in both arms."""
        return sum(arm.share for arm in self.arms)

    @property
    def free(self) -> float:
        """Share of all users that no excluded draw took."""
        left = 1.0
        for draw in self.excludes:
            left *= 1.0 - draw.below
        return left

    @property
    def draw(self) -> Draw:
        """The users of this test, for another one to leave alone."""
        return Draw(experiment=self.experiment, salt=self.salt, below=min(1.0, self.share / self.free))

    def beside(self, running: Iterable["Plan"]) -> "Plan":
        """This plan, leaving the users of running tests of its layer alone."""
        draws = tuple(plan.draw for plan in running if plan.layer == self.layer)
        return Plan.model_validate(self.model_dump() | {"excludes": [draw.model_dump() for draw in draws]})


class Analysis(Record):
    """What an analysis found, and the digest of the file that says it in full."""

    result: Literal["valid", "invalid"]
    digest: Digest
    reasons: tuple[str, ...]
    advice: Advice | None = None


class GuardrailCheck(Record):
    """One look at a running test: its day (0 is the first), and whether it may go on.

    ``unknown``: the logs did not allow a look (a day is missing, they cannot be read); the test goes on.
    """

    day: Annotated[int, Field(ge=0)]
    at: AwareDatetime
    result: Literal["go_on", "stop", "unknown"]
    digest: Digest
    reasons: tuple[str, ...]


class Override(Record):
    """A member of staff who gets a given arm (or none) whatever the draw; never analysed.

    ``user`` is :func:`flywheel_tasks.online.assignment.staff_key`: the registry holds no user id.
    """

    user: Digest
    arm: ArmName | None


class Experiment(Record):
    """One A/B test.

    ``control`` is the champion of its start: the test goes on against it, whoever is promoted meanwhile. Tests that
    were started before it was kept have None.
    """

    plan: Plan
    status: Literal["running", "promoted", "rolled_back"]
    started_at: AwareDatetime
    ends_at: AwareDatetime
    started_by: Name
    analysis: Analysis | None = None
    checks: tuple[GuardrailCheck, ...] = ()
    overrides: tuple[Override, ...] = ()
    end_reason: str | None = None
    control: ModelRef | None = None
