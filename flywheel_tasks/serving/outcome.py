"""How an exchange went: what was said, whose words they are, and how it ended."""

from dataclasses import dataclass

from flywheel_tasks.serving.rollout import Route
from flywheel_tasks.serving.turns import LoggedTurn

FILTERED = "content_filter"
BROKEN_OFF = "error"
INTERRUPTED = "interrupted"


@dataclass
class Outcome:
    """How an exchange went; complete once its last part was given out.

    Attributes:
        message: the reply's turn, once it was handed over to be recorded.
        text: the reply (of a stream: what was shown of it).
        finish: ``stop``, ``length``, ``content_filter``, ``error`` for a stream that broke off, or ``interrupted``
            for one whose reader went away.
        model: the generation whose model wrote it; None if the gateway did.
        fallback: why the champion answered in place of the arm's model: ``failed``, ``not_ready`` (it failed too often,
            or could not be loaded) or ``loading``; None if it did not.
        route: where the request went; None if it was refused before.
        prompt_tokens: as the model counted.
        completion_tokens: as the model counted.
        model_seconds: until the model had answered in full; None if it did not, so nobody knows how long it takes.
    """

    message: LoggedTurn | None = None
    text: str = ""
    finish: str = "stop"
    model: str | None = None
    fallback: str | None = None
    route: Route | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model_seconds: float | None = None
