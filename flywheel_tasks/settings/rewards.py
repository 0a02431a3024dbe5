"""Settings of the reward models and the classifiers of user signals."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from flywheel_tasks.settings.section import NonNegative, Positive, PositiveFloat, Section
from flywheel_tasks.settings.training import Lora, Training

TrainableSignal = Literal["continue", "thumb_up", "thumb_down", "love", "regenerate", "feedback"]
TRAINABLE_SIGNALS: tuple[str, ...] = get_args(TrainableSignal)
SIGNALS = (*TRAINABLE_SIGNALS, "report")
# What rejection sampling has a threshold for, and RL a term.
SelectingSignal = Literal["continue", "thumb_up"]


class EarlierPairs(Section):
    """Pairs of earlier launched generations to learn from too: of the newest ``generations``; 0: none.

    ``per_own``: at most so many for each pair of this generation, those of the newest generation first.
    """

    generations: Annotated[int, Field(ge=0, le=100)]
    per_own: NonNegative


class PreferenceModel(Training):
    """What both reward models have.

    ``lora``: null trains the whole backbone; choose a smaller learning rate then. ``start``: the weights that training
    starts from, those of the first policy, or of the last launched generation's model where there is one.
    """

    start: Literal["base", "earlier"] = "base"
    lora: Lora | None  # type: ignore[assignment]
    earlier_pairs: EarlierPairs


class PointwiseRm(PreferenceModel):
    """Bradley-Terry reward model with a scalar head."""


class PairwiseRm(PreferenceModel):
    """Both replies in one encoding; judges only."""

    max_pairs: Positive


class SignalModels(Section):
    """Classifiers of user signals; only ``used`` may select data."""

    signals: tuple[TrainableSignal, ...]
    used: tuple[SelectingSignal, ...]
    l2: PositiveFloat

    @model_validator(mode="after")
    def _known(self) -> "SignalModels":
        if unknown := set(self.used) - set(self.signals):
            raise ValueError(f"used names signals that are not trained: {', '.join(sorted(unknown))}")
        return self
