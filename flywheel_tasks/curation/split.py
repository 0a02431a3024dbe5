"""Stage split: prompts to five sets whose users are disjoint.

What trains, what selects and what judges must not share a person (the paper: "fully disjoint"), so the split
is a function of the user alone: it does not move when other users come or go.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.curation.tables import PROMPTS, CurationError
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import SPLITS, Split
from flywheel_tasks.storage.tables import read_rows, write_rows

Row = dict[str, Any]


def split_of(user_id: str, settings: Split) -> str:
    """The split of a user: where SHA-256(salt + user id), as a number in [0, 1), falls among the shares.

    Args:
        user_id: the user.
        settings: salt and shares; the order of the splits is that of :data:`flywheel_tasks.settings.SPLITS`.
    """
    digest = hashlib.sha256(f"{settings.salt}{user_id}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    edge = 0.0
    for name in SPLITS:
        edge += settings.shares[name]
        if point < edge:
            return name
    # The shares may add up to a hair less than 1.
    return next(name for name in reversed(SPLITS) if settings.shares[name] > 0)


def prove_disjoint(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Check that no user is in two splits.

    Raises:
        CurationError: one is; the message names the user and the splits.
    """
    homes: dict[str, str] = {}
    for name, rows in splits.items():
        for user in sorted({row["user_id"] for row in rows}):
            if homes.setdefault(user, name) != name:
                raise CurationError(f"data/split: user {user} is in both {homes[user]} and {name}")


def run(io: StageIO) -> Mapping[str, Any]:
    """``data/curated/prompts.parquet`` to one table a split.

    Returns:
        prompts and users of each split, and prompts by source.

    Raises:
        CurationError: a split that has a share stays empty, or users are not disjoint.
    """
    settings = io.settings.split
    rows = read_rows(io.dep("data/curated/prompts.parquet"))
    splits: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        splits[split_of(row["user_id"], settings)].append(row)
    prove_disjoint(splits)
    users = len({row["user_id"] for row in rows})
    if empty := [name for name in SPLITS if settings.shares[name] > 0 and not splits[name]]:
        raise CurationError(
            f"data/split: no prompt for {', '.join(empty)}: {len(rows)} prompts of {users} users are too few "
            "for split.shares; take more logs or raise the share"
        )
    out = io.out("data/split")
    for name in SPLITS:
        write_rows(splits[name], PROMPTS, out / f"{name}.parquet")
    return {
        name: {
            "prompts": len(splits[name]),
            "users": len({row["user_id"] for row in splits[name]}),
            "by_source": dict(sorted(Counter(row["source"] for row in splits[name]).items())),
        }
        for name in SPLITS
    }
