"""Which prompts reinforcement learning uses: those with a low mean or a high spread of reward."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SELECTION = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("mean_reward", pa.float64()),
        ("reward_std", pa.float64()),
        ("selected", pa.bool_()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Selected:
    """A row of ``data/rl/selection.parquet``.

    Attributes:
        prompt_id: the prompt.
        mean_reward: mean over its sampled replies.
        reward_std: standard deviation over them (n - 1); with equal rewards GRPO learns nothing.
        selected: whether it is trained on.
        reason: ``low_mean``, ``high_std`` or ``not_selected``.
    """

    prompt_id: str
    mean_reward: float
    reward_std: float
    selected: bool
    reason: str


def select(prompt_ids: Sequence[str], rewards: Sequence[Sequence[float]], share: float) -> list[Selected]:
    """Choose a share of the prompts: half of it by the lowest mean, the rest by the highest spread.

    Args:
        prompt_ids: of the sampled prompts.
        rewards: of each prompt's replies, at least two a prompt.
        share: of the prompts to select; at least one prompt is.

    Returns:
        all prompts, in the order given.
    """
    means = [float(np.mean(row)) for row in rewards]
    spreads = [float(np.std(row, ddof=1)) for row in rewards]
    places = range(len(prompt_ids))
    count = max(1, round(share * len(prompt_ids)))
    low = sorted(places, key=lambda i: (means[i], prompt_ids[i]))[: count // 2]
    rest = sorted(set(places) - set(low), key=lambda i: (-spreads[i], prompt_ids[i]))[: count - len(low)]
    reasons = dict.fromkeys(low, "low_mean") | dict.fromkeys(rest, "high_std")
    return [
        Selected(prompt_ids[i], means[i], spreads[i], i in reasons, reasons.get(i, "not_selected"))
        for i in places
    ]
