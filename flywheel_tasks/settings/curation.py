"""Settings of which prompts are kept, and in which split they are."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import Positive, Section, Share

SPLITS = ("reward_train", "reward_heldout", "policy_train", "policy_heldout", "evaluation")
Dimension = Literal["source", "character", "topic", "depth", "length", "script", "cohort"]


class Sample(Section):
    """Constrained sampling (docs/curation.md). ``match``: dimensions whose mix is that of the raw traffic.

    ``targets``: shares by dimension and value instead; what they leave over goes to the other values in the mix
    of the traffic. ``at_least`` and ``at_most``: bounds in prompts. ``max_deviation``: a matched value whose share
    must miss its target by more is an error; null: it is reported only. ``max_values``: of a dimension, the rarest
    beyond are one. ``topics``: k-means clusters of the dimension ``topic``.
    """

    match: tuple[Dimension, ...]
    targets: dict[Dimension, dict[str, Share]]
    at_least: dict[Dimension, dict[str, Positive]]
    at_most: dict[Dimension, dict[str, Annotated[int, Field(ge=0)]]]
    max_deviation: Share | None
    max_values: Annotated[int, Field(ge=2)]
    topics: Positive

    @model_validator(mode="after")
    def _shares(self) -> "Sample":
        for name, shares in self.targets.items():
            if not shares or sum(shares.values()) > 1 + 1e-9:
                raise ValueError(f"targets.{name}: shares must be named and add up to at most 1")
        return self


class Curate(Section):
    """Which prompts of the traffic are kept (paper, section on traffic curation).

    ``keep_share``: of the prompts that differ; ``duplicate_cosine`` is lowered until no more than it stays.
    ``probes``: k-means cells that are searched for near-duplicates of a prompt. ``cached_embeddings``: vectors kept
    between runs, about 1.6 kB each.
    """

    duplicate_cosine: Share
    keep_share: Annotated[float, Field(gt=0.0, le=1.0)] | None
    probes: Positive
    cached_embeddings: Annotated[int, Field(ge=0)]
    blocked_words: tuple[str, ...]
    max_prompts: Positive
    max_prompts_per_user: Positive
    max_prompts_per_character: Positive | None
    sample: Sample


class Split(Section):
    """Share of users in each split; a user's split depends on the salt and their id only.

    ``max_evaluation_cosine``: an evaluation prompt closer than this to a prompt of another split is removed.
    ``reuse_evaluation``: whether prompts that judged an earlier launched generation may judge again.
    """

    salt: str
    shares: dict[str, Share]
    max_evaluation_cosine: Share
    reuse_evaluation: bool

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        if set(self.shares) != set(SPLITS):
            raise ValueError(f"shares must name exactly {', '.join(SPLITS)}")
        if abs(sum(self.shares.values()) - 1.0) > 1e-9:
            raise ValueError(f"shares must add up to 1, not {sum(self.shares.values())}")
        return self
