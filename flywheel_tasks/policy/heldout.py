"""Replies to held-out prompts before and after training, and what the training gained on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_rel

from flywheel_tasks.evaluation.intervals import Estimate, mean
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.rewards.scoring import PointwiseScorer

HELDOUT = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int64()),
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
        ("sample", pa.int64()),
        ("reply", pa.string()),
        ("tokens", pa.int64()),
        ("ended", pa.bool_()),
        ("reward", pa.float64()),
    ]
)


def measure(
    sampler: Sampler,
    scorer: PointwiseScorer,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    label: str,
) -> list[dict[str, Any]]:
    """Replies to each prompt and their rewards, as rows of :data:`SIDE`, prompt after prompt.

    Args:
        sampler: of the policy.
        scorer: of replies.
        prompts: held-out ones.
        samples: replies to each.
        seed: of the replies; the same before and after.
        label: of the progress bar.
    """
    drawn = sampler.sample_replies([prompt.chat for prompt in prompts], samples, seed, progress=label)
    answered = [
        (prompt, sample, reply)
        for prompt, replies in zip(prompts, drawn, strict=True)
        for sample, reply in enumerate(replies)
    ]
    rewards = scorer.score([(*prompt.chat, reply.text) for prompt, _, reply in answered])
    return [
        {
            "prompt_id": prompt.prompt_id,
            "sample": sample,
            "reply": reply.text,
            "tokens": reply.tokens,
            "ended": reply.ended,
            "reward": reward,
        }
        for (prompt, sample, reply), reward in zip(answered, rewards, strict=True)
    ]


def prompt_means(values: Sequence[float], prompt_ids: Sequence[str]) -> np.ndarray:
    """The mean of each prompt's values, by prompt id: replies to one prompt are alike, and count as one.

    Args:
        values: one a reply.
        prompt_ids: the prompt of each; all have equally many replies.

    Raises:
        ValueError: a prompt has more replies than another.
    """
    _, places, counts = np.unique(np.asarray(prompt_ids), return_inverse=True, return_counts=True)
    if len(set(counts.tolist())) != 1:
        raise ValueError("the prompts have unequally many replies: their means would not weigh the same")
    means: np.ndarray = np.bincount(places, np.asarray(values, dtype=float)) / counts
    return means


def user_means(values: Sequence[float], prompt_ids: Sequence[str], users: Mapping[str, str]) -> np.ndarray:
    """The mean of each user's prompts, by user id, where a prompt counts with the mean of its values.

    Prompts of one user, which may be turns of one conversation, are alike as replies to one prompt are.

    Args:
        values: one a reply.
        prompt_ids: the prompt of each; all have equally many replies.
        users: whose prompt it is, by prompt id.

    Raises:
        ValueError: a prompt has more replies than another.
    """
    whose = [users[prompt_id] for prompt_id in sorted(set(prompt_ids))]
    _, places, counts = np.unique(np.asarray(whose), return_inverse=True, return_counts=True)
    means: np.ndarray = np.bincount(places, prompt_means(values, prompt_ids)) / counts
    return means


def surely_more(one: np.ndarray, other: np.ndarray, chance: float) -> bool:
    """Whether the values of one are greater than the other's, by a paired t-test.

    Args:
        one: the mean of each user (:func:`user_means`).
        other: the same, of the same users.
        chance: that equal ones are taken for greater.
    """
    if len(one) < 2 or one.mean() <= other.mean():
        return False  # also where all are alike, or of one user, of which a test knows nothing
    return bool(ttest_rel(one, other, alternative="greater").pvalue < chance)


def half_seen(users: int, chance: float) -> float | None:
    """How large a difference :func:`surely_more` finds in one of two cases, by the noncentral t distribution.

    Args:
        users: whose means are compared.
        chance: as there.

    Returns:
        the mean difference, in standard deviations of the users' differences; None for fewer than two users, of which
        the test knows nothing.
    """
    if users < 2:
        return None
    least = float(t.isf(chance, users - 1))
    shift = brentq(lambda shift: nct.sf(least, users - 1, shift) - 0.5, 0, 2 * least)
    return float(shift / np.sqrt(users))


def paired_gain(
    before: Sequence[float], after: Sequence[float], prompt_ids: Sequence[str], users: Mapping[str, str]
) -> Estimate:
    """Mean gain over prompts, with a 95% interval clustered by user.

    A prompt's replies are one observation, their mean: replies to one prompt are alike. So are prompts of one user,
    which may even be turns of one conversation: the interval knows only as much as there are users.

    Args:
        before: reward of each reply before.
        after: the same, after, in the same order.
        prompt_ids: the prompt of each; all have equally many replies.
        users: whose prompt it is, by prompt id.

    Returns:
        the estimate (see :func:`flywheel_tasks.evaluation.intervals.mean`): ``n`` prompts in ``clusters`` users; the
        bounds are None for fewer than two users.

    Raises:
        ValueError: a prompt has more replies than another, or a gain is not a finite number.
    """
    gained = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    gains = prompt_means(gained.tolist(), prompt_ids)
    return mean(gains.tolist(), [users[prompt_id] for prompt_id in sorted(set(prompt_ids))])
