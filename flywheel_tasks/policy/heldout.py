"""Replies to held-out prompts before and after training, and what the training gained on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import bootstrap

from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.rewards.scoring import PointwiseScorer

HELDOUT = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("before_reply", pa.string()),
        ("before_reward", pa.float64()),
        ("after_reply", pa.string()),
        ("after_reward", pa.float64()),
    ]
)
SIDE = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("reply", pa.string()),
        ("tokens", pa.int64()),
        ("ended", pa.bool_()),
        ("reward", pa.float64()),
    ]
)


def measure(
    sampler: Sampler, scorer: PointwiseScorer, prompts: Sequence[Prompt], seed: int, label: str
) -> list[dict[str, Any]]:
    """One reply to each prompt and its reward, as rows of :data:`SIDE`.

    Args:
        sampler: of the policy.
        scorer: of replies.
        prompts: held-out ones.
        seed: of the replies; the same before and after.
        label: of the progress bar.
    """
    drawn = sampler.sample_replies([prompt.chat for prompt in prompts], 1, seed, progress=label)
    replies: list[Reply] = [reply for (reply,) in drawn]
    rewards = scorer.score(
        [(*prompt.chat, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
    )
    return [
        {
            "prompt_id": prompt.prompt_id,
            "reply": reply.text,
            "tokens": reply.tokens,
            "ended": reply.ended,
            "reward": reward,
        }
        for prompt, reply, reward in zip(prompts, replies, rewards, strict=True)
    ]


def paired_gain(before: Sequence[float], after: Sequence[float], seed: int) -> dict[str, float | int | None]:
    """Mean gain with a 95% percentile interval of a paired bootstrap over prompts.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
        before: reward of each prompt's reply before.
        after: the same, after.
        seed: of the resamples.

    Returns:
        ``value``, ``low``, ``high``, ``n``; the bounds are None for fewer than two prompts.
    """
    gains = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    value, n = float(gains.mean()), len(gains)
    if n < 2:
        return {"value": value, "low": None, "high": None, "n": n}
    random = np.random.default_rng(seed)
    found = bootstrap(
        (gains,), np.mean, n_resamples=4000, method="percentile", rng=random
    ).confidence_interval
    return {"value": value, "low": float(found.low), "high": float(found.high), "n": n}
