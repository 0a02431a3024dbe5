"""Win rates of the candidate over the champion by reward models, and how far the two sources are apart."""

import math
from collections.abc import Sequence

from flywheel_tasks.evaluation.intervals import Estimate, difference, share
from flywheel_tasks.evaluation.prompts import SOURCES


def pointwise_score(candidate_reward: float, champion_reward: float, *, identical: bool) -> float:
    """1 where the candidate has the higher reward, 0 where the lower, 1/2 for a tie or the same reply.

    Raises:
        ValueError: a reward is not finite.
    """
    if not (math.isfinite(candidate_reward) and math.isfinite(champion_reward)):
        raise ValueError(f"rewards must be finite: {candidate_reward}, {champion_reward}")
    if identical or candidate_reward == champion_reward:
        return 0.5
    return float(candidate_reward > champion_reward)


def pairwise_score(preference: float, *, identical: bool) -> float:
    """1 where the candidate is preferred with more than 1/2, 0 with less, 1/2 for a tie or the same reply.

    Raises:
        ValueError: the preference is not a probability.
    """
    if not 0 <= preference <= 1:  # true for NaN too
        raise ValueError(f"a preference must lie between 0 and 1: {preference}")
    if identical or preference == 0.5:
        return 0.5
    return float(preference > 0.5)


def win_rates(scores: Sequence[float], sources: Sequence[str], users: Sequence[str]) -> dict[str, Estimate]:
    """Share of wins by source and over all rows, with 95% intervals clustered by user.

    Args:
        scores: 1, 1/2 or 0 a row.
        sources: ``user`` or ``internal``.
        users: whose prompt each row answers.

    Returns:
        the estimates; one of a source without prompts is null, with a reason.
    """
    rates: dict[str, Estimate] = {}
    for name in (*SOURCES, "all"):
        chosen = [i for i, source in enumerate(sources) if name in (source, "all")]
        rates[name] = share([scores[i] for i in chosen], [users[i] for i in chosen])
        if not chosen:
            rates[name]["reason"] = f"no {name} prompts in the evaluation split"
    return rates


def divergence(rates: dict[str, Estimate]) -> Estimate:
    """User minus internal win rate. Far from zero, the candidate fits one kind of traffic (paper: V12).

    Args:
        rates: of :func:`win_rates`.

    Returns:
        the difference; null with the reason where a source has no prompts.
    """
    found = difference(rates["user"], rates["internal"])  # type: ignore[arg-type]
    if reasons := [rates[source]["reason"] for source in SOURCES if "reason" in rates[source]]:
        found["reason"] = "; ".join(reasons)
    return found


def agreement(first: Sequence[float], second: Sequence[float], users: Sequence[str]) -> Estimate:
    """Share of rows, ties of either judge left out, on which two judges name the same winner."""
    both = [(a == b, user) for a, b, user in zip(first, second, users, strict=True) if 0.5 not in (a, b)]
    return share([float(same) for same, _ in both], [user for _, user in both])
