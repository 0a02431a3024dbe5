"""Settings of what may leave: personal identifiers and unsafe text."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import Positive, PositiveFloat, Section

# Types of personal identifiers (flywheel_tasks/privacy/types.py says what each is).
IDENTIFIERS = (
    "SECRET",
    "URL_SECRET",
    "EMAIL",
    "IBAN",
    "CARD",
    "NATIONAL_ID",
    "CRYPTO",
    "URL",
    "IP",
    "PHONE",
    "ADDRESS",
    "NAME",
)


class Privacy(Section):
    """What is done about personal identifiers, by type (docs/privacy.md)."""

    policy: dict[str, Literal["replace", "drop", "keep"]]
    model: str | None  # finds names and addresses: spaCy pipeline, Hugging Face hub id, or a folder of either
    phone_regions: Annotated[tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole(self) -> "Privacy":
        if set(self.policy) != set(IDENTIFIERS):
            odd = sorted(set(self.policy) ^ set(IDENTIFIERS))
            raise ValueError(f"policy must name each type once; missing or unknown: {', '.join(odd)}")
        return self


class Safety(Section):
    """Who judges whether a text is safe (docs/safety.md). Whatever cannot be judged is unsafe."""

    classifier: Literal["words", "local", "http"]
    model: str | None  # local: Hugging Face hub id or folder
    safe_labels: tuple[str, ...]  # local: labels that are no harm
    url: Annotated[str, Field(pattern="^https?://")] | None  # http
    timeout_seconds: PositiveFloat
    retries: Annotated[int, Field(ge=0, le=10)]
    batch_size: Positive
    threshold: Annotated[float, Field(gt=0.0, le=1.0)]

    @model_validator(mode="after")
    def _complete(self) -> "Safety":
        needed = {"local": self.model, "http": self.url, "words": ""}[self.classifier]
        if needed is None:
            raise ValueError(
                f"classifier {self.classifier} needs {'model' if self.classifier == 'local' else 'url'}"
            )
        return self
