"""What a policy in training did on held-out prompts at one step, and when that says that it is over-optimised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import norm

from flywheel_tasks.evaluation.win_rate import pointwise_score
from flywheel_tasks.policy.heldout import SIDE, half_seen, surely_more, user_means
from flywheel_tasks.training.run import write_curve

_CHANCE = 0.025  # that a run is stopped for nothing
Row = dict[str, Any]
CHECKS = pa.schema(
    [
        ("step", pa.int64()),
        *SIDE,
        ("champion_reply", pa.string()),
        ("champion_reward", pa.float64()),
        ("win", pa.float64()),  # 1, 1/2 or 0 by reward
        ("judge", pa.float64()),  # the pairwise model's P(this reply is better than the champion's), or null
    ]
)


@dataclass(frozen=True)
class Check:
    """What one checkpoint did on the held-out prompts.

    Attributes:
        step: optimiser steps done.
        rows: of :data:`CHECKS`, one a reply, always in the same order.
        users: whose prompt it is, by prompt id; only :meth:`by_user` needs them.
    """

    step: int
    rows: tuple[Row, ...]
    users: Mapping[str, str] = field(default_factory=dict)

    def values(self, column: str) -> list[float]:
        """One column; of ``judge`` only the replies that were judged, in every check to the same prompts."""
        return [float(row[column]) for row in self.rows if row[column] is not None]

    def by_user(self, column: str) -> np.ndarray:
        """:func:`~flywheel_tasks.policy.heldout.user_means` of one column."""
        prompts = [row["prompt_id"] for row in self.rows if row[column] is not None]
        return user_means(self.values(column), prompts, self.users)

    def mean(self, column: str) -> float:
        """Mean of one column."""
        return float(np.mean(self.values(column)))

    def expected_win_rate(self) -> float:
        """The win rate that the gains in reward over the champion point to: Φ(mean / standard deviation).

        Wins alone are a coarse measure of a few dozen prompts. Thurstone 1927, "A law of comparative judgment",
        case of normal differences; where all gains are equal there is no spread, and the wins themselves count.
        """
        gains = np.array(self.values("reward")) - np.array(self.values("champion_reward"))
        spread = float(gains.std(ddof=1)) if len(gains) > 1 else 0.0
        return float(norm.cdf(gains.mean() / spread)) if spread > 0 else self.mean("win")

    def summary(self) -> dict[str, float]:
        """What the metrics and the plot show."""
        return {
            "reward": self.mean("reward"),
            "win_rate": self.mean("win"),
            "expected_win_rate": self.expected_win_rate(),
            "judge": self.mean("judge"),
            "tokens": self.mean("tokens"),
            "cut_off_share": 1.0 - self.mean("ended"),
        }


def compare(
    step: int, replies: Sequence[Row], champion: Sequence[Row], judged: Sequence[float | None]
) -> Check:
    """Put a checkpoint's replies beside the champion's.

    Args:
        step: of the checkpoint.
        replies: rows of :data:`~flywheel_tasks.policy.heldout.SIDE`.
        champion: the champion's, of the same prompts.
        judged: P(the checkpoint's reply is better) of each, None where the judge was not asked.
    """
    rows = []
    for new, old, judge in zip(replies, champion, judged, strict=True):
        same = new["reply"] == old["reply"]
        shown = {"champion_reply": old["reply"], "champion_reward": old["reward"], "judge": judge}
        win = pointwise_score(new["reward"], old["reward"], identical=same)
        rows.append(dict(new) | shown | {"step": step, "win": win})
    return Check(step, tuple(rows))


def over_optimised(checks: Sequence[Check], looks: int) -> bool:
    """Whether the last check has more reward than the first, of the policy before RL, and the judge likes it less.

    Both must be more than noise: paired t-tests over users, which hold for the few users of a small run too. The run is
    looked at after every check and any of them may stop it, so the looks share a chance of 2.5% (Bonferroni): where
    nothing has changed, a whole run is stopped no more often than that. The check compared with is fixed beforehand;
    the best so far would be the luckiest, from which everything falls.

    Args:
        checks: made so far, the one before RL first.
        looks: how many checks the whole run will have after the first.
    """
    first, last = checks[0], checks[-1]
    return surely_more(last.by_user("reward"), first.by_user("reward"), _CHANCE / looks) and surely_more(
        first.by_user("judge"), last.by_user("judge"), _CHANCE / looks
    )


def spreads_to_stop(users: int, looks: int) -> float | None:
    """How far the judge must fall for :func:`over_optimised` to see it at one of two looks.

    Args:
        users: whose prompts the judge reads.
        looks: as there.

    Returns:
        the mean fall, in standard deviations of the users' falls; None for fewer than two users.
    """
    return half_seen(users, _CHANCE / looks)


def judge_stop(checks: Sequence[Check], looks: int) -> dict[str, Any]:
    """What the judge could have seen: a run that was not stopped may only have had too few users for it.

    Args:
        checks: of the whole run, the one before RL first.
        looks: as for :func:`over_optimised`.

    Returns:
        ``prompts`` and ``users`` that the judge read, and ``noticed_fall``: how far it must fall from the first check,
        in its probability, to stop the run at one of two looks, by the spread of the users' falls at the last check.
        None with a ``reason`` where that is further than it can fall, or where there is no spread to tell it by.
    """
    first, last = checks[0].by_user("judge"), checks[-1].by_user("judge")
    read: dict[str, Any] = {"prompts": len(checks[0].values("judge")), "users": len(first)}
    needed = spreads_to_stop(len(first), looks)
    fall = None if needed is None else needed * float(np.std(first - last, ddof=1))
    if fall is None or fall > first.mean():
        return read | {"noticed_fall": None, "reason": "too few users to tell"}
    if fall == 0:
        return read | {"noticed_fall": None, "reason": "every user's reading changed alike"}
    return read | {"noticed_fall": fall}


def nearest(checks: Sequence[Check], target: float) -> Check:
    """The check whose expected win rate lies nearest to the target; of two, the earlier one.

    Args:
        checks: those that may be handed over, at least one.
        target: win rate against the champion.
    """
    return min(checks, key=lambda check: (abs(check.expected_win_rate() - target), check.step))


def write_checks(checks: Sequence[Check], path: Path) -> None:
    """Write the checks as a curve (CSV): one row a checkpoint."""
    rows = [{"step": check.step, **check.summary()} for check in checks]
    write_curve(rows, list(checks[0].summary()), path)
