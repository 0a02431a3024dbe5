"""Settings of annotation: what is asked, who labels, which labels count."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from flywheel_tasks.settings.models import PoolEntry, check_names
from flywheel_tasks.settings.section import Positive, PositiveFloat, Section, Share

GENERATION = "{generation}"  # in a location: the generation's id
_PURPOSES = ("reward_train", "reward_heldout", "policy")
# A label's answers and the controls of the labelling interface have these names already.
_TAKEN = (
    "false_refusal",
    "templated",
    "violates_card",
    "violated",
    "place",
    "reply",
    "preference",
    "rewrite",
)


class ExtraQuestion(Section):
    """A question of the team's own about each reply; without ``choices`` the answer is yes or no."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,30}$")]
    text: Annotated[str, Field(min_length=1, max_length=300)]
    choices: Annotated[tuple[str, ...], Field(max_length=12)] = ()

    @model_validator(mode="after")
    def _usable(self) -> "ExtraQuestion":
        if self.name in _TAKEN:
            raise ValueError(f"{self.name} is a name that annotation uses itself")
        if len(self.choices) == 1 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"{self.name}: choices must be two or more different texts, or left out")
        if any("$" in text or not text.strip() for text in (self.text, *self.choices)):
            raise ValueError(
                f"{self.name}: a text is empty or has a $, which Label Studio takes for a variable"
            )
        return self


class Overlap(Section):
    """Share of the tasks with one review that get several, to see how far annotators agree there too."""

    share: Share
    reviews: Annotated[int, Field(ge=2, le=20)]


class AnnotationBatch(Section):
    """What goes out to the annotators: candidates a prompt, prompts a purpose, kinds of tasks, questions."""

    candidates: Annotated[int, Field(ge=2, le=8)]
    pool: Annotated[tuple[PoolEntry, ...], Field(min_length=1)]
    max_reward_train: Positive
    max_reward_heldout: Positive
    max_policy: Positive
    max_rewrite: Annotated[int, Field(ge=0)]
    gold_share: Annotated[float, Field(ge=0.0, le=0.5)]
    kinds: dict[str, Literal["comparison", "steerability"]]
    reviews: dict[str, Annotated[int, Field(ge=1, le=20)]]
    overlap: Overlap
    questions: tuple[ExtraQuestion, ...]
    guidelines: Annotated[str, Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _whole(self) -> "AnnotationBatch":
        for name in ("kinds", "reviews"):
            if set(getattr(self, name)) != set(_PURPOSES):
                raise ValueError(f"{name} must name exactly {', '.join(_PURPOSES)}")
        names = [question.name for question in self.questions]
        if len(set(names)) < len(names):
            raise ValueError("questions: a name repeats")
        check_names(self.pool)
        if "$" in self.guidelines:
            raise ValueError("guidelines: has a $, which Label Studio takes for a variable")
        return self


class LabelStudio(Section):
    """A Label Studio server; the token comes from the environment variable LABEL_STUDIO_API_KEY only."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    project: Annotated[
        str, Field(min_length=1, max_length=12)
    ]  # begins the titles of the projects made there
    timeout_seconds: PositiveFloat
    poll_minutes: PositiveFloat
    wait_hours: PositiveFloat


def _has_folder(location: str) -> str:
    """Labels of all generations need a folder of their own: ``flywheel forget`` looks through it and no more."""
    path = location.partition("://")[2] or location
    first = next((part for part in path.split("/") if part not in ("", ".", "..")), None)
    if first is None:
        raise ValueError(f"{location!r} names no folder of its own")
    if GENERATION in first:
        raise ValueError(
            f"{location}: {GENERATION} is in the first part of the path, so that the labels of all generations "
            f"have no folder of their own; name one before it, e.g. labels/{GENERATION}"
        )
    return location


class Label(Section):
    """Who labels: the demo's simulated annotators, files that people deliver, or people in Label Studio.

    ``location`` is where labels are delivered: a folder, a file or ``s3://bucket/prefix``; ``{generation}`` in it
    is the generation's id.
    """

    annotator: Literal["simulated", "files", "label_studio"]
    location: Annotated[str, AfterValidator(_has_folder)]
    min_done: Share
    max_quarantine_share: Share
    label_studio: LabelStudio


class Consensus(Section):
    """Which pairs are good enough to measure with: at least so many reviews, and so much agreement."""

    min_reviews: Annotated[int, Field(ge=2)]
    min_agreement: Annotated[float, Field(gt=0.5, le=1.0)]


class GoldItems(Section):
    """Who is flagged by tasks with known answers: on ``min_items`` of them or more, surely below ``min_accuracy``."""

    min_items: Positive
    min_accuracy: Share


class Annotators(Section):
    """Who is flagged: with at least ``min_items`` shared decisions, agreement surely below ``min_agreement``."""

    min_items: Positive
    min_agreement: Share
    gold: GoldItems
    exclude_flagged: bool


class Annotate(Section):
    """Filters on ranking pairs, so that the surface cannot be learned; consensus; annotators.

    ``max_length_ratio``: in words, or in characters where a reply's words cannot be counted.
    """

    max_length_ratio: Annotated[float, Field(ge=1.0)]
    max_emoji_difference: Annotated[int, Field(ge=0)]
    drop_both_refusals: bool
    pairs_per_prompt: Positive
    rewrites: bool  # whether annotators' rewrites become pairs and replies to learn from
    consensus: Consensus
    annotators: Annotators
