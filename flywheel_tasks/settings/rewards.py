"""Settings of the reward models and the classifiers of user signals."""

from typing import Literal

from pydantic import model_validator

from flywheel_tasks.settings.section import Positive, PositiveFloat, Section
from flywheel_tasks.settings.training import Training

SIGNALS = ("continue", "thumb_up", "thumb_down", "love", "regenerate", "feedback", "report")


class PointwiseRm(Training):
    """Bradley-Terry reward model with a scalar head."""


class PairwiseRm(Training):
    """Both replies in one encoding; judges only."""

    max_pairs: Positive


class SignalModels(Section):
    """Classifiers of user signals; only ``used`` may select data."""

    signals: tuple[Literal["continue", "thumb_up", "thumb_down", "love", "regenerate", "feedback"], ...]
    used: tuple[str, ...]
    l2: PositiveFloat

    @model_validator(mode="after")
    def _known(self) -> "SignalModels":
        if unknown := set(self.used) - set(self.signals):
            raise ValueError(f"used names signals that are not trained: {', '.join(sorted(unknown))}")
        return self
