"""Settings of the gateway, ``flywheel serve``."""

from typing import Annotated, Literal

from pydantic import Field

from flywheel_tasks.settings.section import NonNegative, Positive, PositiveFloat, Section


class ServeRate(Section):
    """Requests of one user: so many a minute, and so many at once."""

    per_minute: PositiveFloat
    burst: Positive


class ServeBreaker(Section):
    """A model that fails this often in a row is not asked again for a while."""

    failures: Positive
    seconds: PositiveFloat


class ServeLocal(Section):
    """Models in the gateway's own process: requests that come close together are answered together."""

    max_batch: Positive
    batch_wait_ms: NonNegative


class ServeUpstream(Section):
    """An OpenAI-compatible server; ``{model}`` in url and model stands for the generation of the model.

    ``greetings``: its chat template takes what a character says before the user's first message; else it is left out.
    ``system_role``: its chat template takes a system message; else the card stands before the user's first message.
    """

    url: Annotated[str, Field(pattern=r"^https?://")]
    model: Annotated[str, Field(min_length=1)]
    connections: Positive
    connect_seconds: PositiveFloat
    greetings: bool = False
    system_role: bool = True
    extra: dict[str, str | bool | int | float]


class Serve(Section):
    """The gateway, ``flywheel serve`` (docs/serving.md)."""

    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    workers: Positive
    cards: str
    logs: str
    state: str
    segment_seconds: Annotated[int, Field(ge=1, le=86400)]
    poll_seconds: PositiveFloat
    turn_days: Positive
    rate: ServeRate
    max_body_bytes: Positive
    max_message_characters: Positive
    max_in_flight: Positive
    history_turns: Positive
    timeout_seconds: PositiveFloat
    safety_seconds: PositiveFloat
    drain_seconds: Positive
    breaker: ServeBreaker
    refusal: Annotated[str, Field(min_length=1)]
    backend: Literal["local", "upstream"]
    local: ServeLocal
    upstream: ServeUpstream
