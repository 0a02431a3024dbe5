"""Settings of a campaign: several launches in a row."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import Positive, PositiveFloat, Section


class Campaign(Section):
    """Several launches in a row on the demo's simulated people, unattended (docs/campaign.md).

    ``overlay``, ``overoptimise``, ``without_ceiling`` and ``ablations`` are other values of settings, by dotted name,
    such as ``rl.steps``: of every generation; on top of that of the over-optimised one, of every one of a campaign
    without the ceiling, and of each ablation.
    """

    launches: Positive
    max_generations: Positive  # blocked ones and the over-optimised one included
    overoptimise_at: Annotated[int, Field(ge=0)]  # number of the generation; 0: none
    ceiling: bool  # false: the gate's limit on a high win rate is open
    counterfactuals: bool  # test what the gate blocked anyway, outside the registry
    inconclusive: Literal["promote_if_better", "roll_back"]
    panel_users: Annotated[int, Field(ge=2)]  # in each of three groups; measures true utility
    minutes_per_generation: PositiveFloat  # for the time left, until one is measured
    keep_models: bool  # of all generations; false: only those that a later one reads
    overlay: dict[str, Any]
    overoptimise: dict[str, Any]
    without_ceiling: dict[str, Any] = Field(default_factory=dict)  # campaigns begun earlier have none
    ablations: dict[Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,40}$")], dict[str, Any]]

    @model_validator(mode="after")
    def _possible(self) -> "Campaign":
        if self.max_generations < self.launches:
            raise ValueError("max_generations must not be below launches")
        return self
