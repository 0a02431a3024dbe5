"""Settings that training runs share."""

from typing import Literal

from flywheel_tasks.settings.section import Positive, PositiveFloat, Section


class Tracking(Section):
    """Where training runs are shown; it changes no output, so no stage depends on it."""

    tracker: Literal["tensorboard", "mlflow", "wandb", "none"]


class Lora(Section):
    """LoRA on the last ``layers`` transformer layers."""

    rank: Positive
    alpha: Positive
    layers: Positive


class Training(Section):
    """What every training run has. ``max_tokens``: prompt and reply together; ``batch_size``: rows a step."""

    epochs: PositiveFloat
    learning_rate: PositiveFloat
    batch_size: Positive
    max_tokens: Positive
    lora: Lora
