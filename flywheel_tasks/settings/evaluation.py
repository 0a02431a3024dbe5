"""Settings of the evaluation of a candidate."""

from typing import Literal

from pydantic import model_validator

from flywheel_tasks.settings.section import Positive, Section


class Judge(Section):
    """Who judges what rules cannot: nobody, a local model (folder or hub id), or an OpenAI-compatible endpoint.

    The endpoint's key comes from the environment variable ``key_variable``.
    """

    kind: Literal["none", "local", "endpoint"]
    model: str
    url: str
    key_variable: str

    @model_validator(mode="after")
    def _named(self) -> "Judge":
        if self.kind != "none" and not self.model:
            raise ValueError(f"judge kind {self.kind} needs a model")
        if self.kind == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise ValueError("judge kind endpoint needs an http(s) url")
        return self


class Evaluate(Section):
    """Offline evaluation on the evaluation split; ``suites``: further prompts by name, off when empty."""

    prompts: Positive
    samples: Positive
    judge: Judge
    suites: tuple[Literal["red_team", "over_refusal", "pushing", "tool_calls"], ...]
