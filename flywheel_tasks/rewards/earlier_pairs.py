"""Which pairs of earlier launched generations a reward model learns from beside this generation's own.

Few pairs are a reward model's weakest point, and those of earlier launches are paid for. They are of older policies, so
the newest generations come first, and there are never more than so many for each own pair: most of what is learned
stays near the policy that is judged (paper, section on reward models).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.curation.split import split_of
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.pairs import Pair, PairError, parse_pairs
from flywheel_tasks.settings import EarlierPairs
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.tables import read_rows

FOLDER = "inputs/earlier_pairs"


@dataclass(frozen=True)
class Found:
    """Pairs to learn from too, and the account of all that there were.

    Attributes:
        pairs: the newest generation's first.
        account: by generation: ``launched_with`` pairs, of which ``used``, and how many were not, by reason.
    """

    pairs: list[Pair]
    account: dict[str, Any]


def earlier_pairs(
    io: StageIO, section: EarlierPairs, own: Sequence[Pair], heldout: Sequence[Pair], room: int | None = None
) -> Found:
    """Choose them.

    Left out are pairs of users who are not in the split ``reward_train`` now, or whom this generation measures on:
    splits are a function of the user, but its settings may have changed. Also what is among the own pairs already.

    Args:
        io: the stage; it declares ``inputs/earlier_pairs`` and the setting ``split``.
        section: of how many generations, and how many.
        own: this generation's pairs to train on.
        heldout: this generation's pairs to measure on.
        room: most pairs in all beside the own ones, where the stage has a limit.

    Raises:
        PairError: a table breaks a rule, or an earlier generation's has another purpose in it.
    """
    split, seed = io.settings.split, io.settings.seed
    most = int(section.per_own * len(own))
    left = most if room is None else min(most, max(0, room))
    measured = {pair.user_id for pair in heldout}
    seen = {pair.pair_id for pair in own}
    chosen: list[Pair] = []
    account: dict[str, Any] = {}
    for row in read_json(io.dep(FOLDER) / "index.json")["generations"][: section.generations]:
        name = row["generation"]
        if row["reason"] is not None:
            account[name] = {"launched_with": row["pairs"], "used": 0, "lost": row["pairs"]}
            continue
        pairs = _read(io, name)
        known = [pair for pair in pairs if pair.pair_id in seen]
        fresh = [pair for pair in pairs if pair.pair_id not in seen]
        fair = [
            pair
            for pair in fresh
            if pair.user_id not in measured
            and split_of(pair.user_id, split.salt, split.shares) == "reward_train"
        ]
        used = _by_prompt(fair, seed)[: left - len(chosen)]
        chosen += used
        seen |= {pair.pair_id for pair in fair}
        account[name] = {
            "launched_with": row["pairs"],
            "used": len(used),
            "forgotten": row["pairs"] - len(pairs),
            "other_split": len(fresh) - len(fair),
            "repeated": len(known),
            "over_limit": len(fair) - len(used),
        }
    return Found(chosen, account)


def _read(io: StageIO, generation: str) -> list[Pair]:
    path = io.dep(f"{FOLDER}/{generation}.parquet")
    found = parse_pairs(read_rows(path), path)
    if other := [purpose for purpose, pairs in found.items() if pairs and purpose != "reward_train"]:
        raise PairError(f"{path}: pairs of purpose {other[0]} may not be trained on")
    return found["reward_train"]


def _by_prompt(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Pairs prompt by prompt, the prompts in a drawn order: pairs of one prompt are cheap to train on together."""
    return sorted(pairs, key=lambda pair: (draw_order(seed, "earlier pairs", pair.prompt_id), pair.pair_id))
