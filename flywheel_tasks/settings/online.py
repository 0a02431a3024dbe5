"""Settings of launches: approval, registry, A/B tests, and how Airflow runs a generation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import NonNegative, Positive, PositiveFloat, Section
from flywheel_tasks.storage.experiment_records import MOST_DAYS, Rule

AB_METRICS = (
    "breadth",
    "active_days",
    "depth",
    "messages_per_active_user",
    "thumb_up_per_reply",
    "love_per_reply",
    "thumb_down_per_reply",
    "regenerate_per_reply",
    "report_per_reply",
    "safety_violation_per_reply",
    "fallback_per_reply",
    "latency_ms",
)


class Launch(Section):
    """Share of all users in each arm of the A/B test; tests of one layer share no users."""

    traffic_share: Annotated[float, Field(gt=0.0, le=0.5)]
    layer: Annotated[str, Field(min_length=1, max_length=200)]


class Approval(Section):
    """Who approves a launch outside Airflow, where the gate does not block.

    ``policy``: ``flywheel generation run``; ``human``: a person, by ``flywheel approve``; ``policy_if_simulated``: the
    policy where the generation's users are simulated, a person everywhere else.
    """

    local: Literal["policy_if_simulated", "policy", "human"]


class Registry(Section):
    """Where the registry lives."""

    location: str


class Ab(Rule):
    """The A/B test: the rule that a plan fixes before its start, and where the events are.

    ``events``: ``logs``; a folder or s3 prefix of Parquet tables; or the URL of a warehouse (docs/experiments.md).
    """

    events: Annotated[str, Field(min_length=1)]
    segments: tuple[str, ...]
    look_minutes: PositiveFloat
    late_logs_hours: NonNegative

    @model_validator(mode="after")
    def _known_metrics(self) -> "Ab":
        if unknown := {*self.primary, *self.guardrails} - set(AB_METRICS):
            raise ValueError(f"unknown metrics: {', '.join(sorted(unknown))}; known: {', '.join(AB_METRICS)}")
        return self

    @model_validator(mode="after")
    def _every_look_can_read_it(self) -> "Ab":
        """What no look or analysis could read must not start: its guardrails would never stop it."""
        if self.duration_minutes > MOST_DAYS * 24 * 60:
            raise ValueError(f"duration_minutes: a test of more than {MOST_DAYS} days cannot be analysed")
        # Whether it is a URL decides how it is read, and what of it may be told.
        if self.events.startswith("$"):
            raise ValueError(
                "events: begin with the scheme (postgres://${LOGIN}@host/events), the place or logs itself: "
                "a variable must not stand at the beginning"
            )
        if self.segments and self.events == "logs":
            raise ValueError(
                "segments: raw logs have no further columns of exposures; leave it empty, or let events be tables"
            )
        return self

    @property
    def rule(self) -> Rule:
        """What a plan takes over."""
        return Rule(**self.model_dump(include=set(Rule.model_fields)))


class Airflow(Section):
    """How Airflow runs a generation."""

    schedule: str | None
    retries: Annotated[int, Field(ge=0)]
    retry_delay_seconds: Positive
    approval_timeout_hours: PositiveFloat
    gpu_pool_slots: Positive
