"""Stage split: prompts to five sets that share no user, conversation or text, with evaluation apart from all others.

What trains, what selects and what judges must not share a person (the paper: "fully disjoint"), so the split
is a function of the user alone: it does not move when other users come or go. When shares or salt change, users whom
an earlier launched generation trained on never come to evaluation, nor the other way. Evaluation prompts are fresh:
one that judged an earlier launched generation is not used again (docs/curation.md).
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flywheel_tasks.curation.disjoint import nearest, prove_disjoint
from flywheel_tasks.curation.tables import PROMPTS, REMOVED, CurationError
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import SPLITS, Split
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, read_table, write_rows
from flywheel_tasks.traffic.schemas import SOURCES

_log = logging.getLogger(__name__)
Row = dict[str, Any]
EVALUATION = "evaluation"
TRAINING = ("reward_train", "policy_train")


def split_of(user_id: str, salt: str, shares: Mapping[str, float]) -> str:
    """The split of a user: where SHA-256(salt + user id), as a number in [0, 1), falls among the shares.

    Args:
        user_id: the user.
        salt: of the hash.
        shares: by split; their order on the line is that of :data:`flywheel_tasks.settings.SPLITS`.
    """
    digest = hashlib.sha256(f"{salt}{user_id}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    edge = 0.0
    for name in SPLITS:
        edge += shares[name]
        if point < edge:
            return name
    # The shares may add up to a hair less than 1.
    return next(name for name in reversed(SPLITS) if shares[name] > 0)


class _Splits:
    """Rows by split, and the rows that are in none, with the reason."""

    def __init__(self, rows: Sequence[Row], vectors: np.ndarray, settings: Split) -> None:
        self._settings = settings
        self._vectors = {row["prompt_id"]: vector for row, vector in zip(rows, vectors, strict=True)}
        self.rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        self.removed: list[Row] = []
        for row in rows:
            self.rows[split_of(row["user_id"], settings.salt, settings.shares)].append(row)

    def vectors(self, name: str) -> np.ndarray:
        """Vectors of a split's rows, in their order."""
        found = [self._vectors[row["prompt_id"]] for row in self.rows[name]]
        width = len(next(iter(self._vectors.values()), ()))
        return np.array(found, dtype=np.float32).reshape(len(found), width)

    def drop(self, name: str, reasons: Mapping[str, tuple[str, str]]) -> None:
        """Take prompts out of a split; ``reasons``: reason and detail by prompt id."""
        for row in self.rows[name]:
            if row["prompt_id"] in reasons:
                reason, detail = reasons[row["prompt_id"]]
                ids = {key: row[key] for key in ("prompt_id", "conversation_id", "user_id")}
                self.removed.append({**ids, "reason": reason, "detail": detail})
        self.rows[name] = [row for row in self.rows[name] if row["prompt_id"] not in reasons]

    def drop_moved(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Take out users whom a change of salt or shares has moved between training and evaluation."""
        for name in (EVALUATION, *TRAINING):
            barred = TRAINING if name == EVALUATION else (EVALUATION,)
            for then in earlier:
                found = {}
                for row in self.rows[name]:
                    home = split_of(row["user_id"], then["salt"], then["shares"])
                    if home in barred:
                        found[row["prompt_id"]] = (
                            "moved_user",
                            f"{home} in {then['generation']}, now {name}",
                        )
                self.drop(name, found)

    def drop_used(self, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Take out evaluation prompts that judged an earlier generation."""
        used = {prompt["prompt_id"]: then["generation"] for then in earlier for prompt in then["evaluated"]}
        ids = [row["prompt_id"] for row in self.rows[EVALUATION]]
        self.drop(
            EVALUATION, {name: ("evaluated_before", f"in {used[name]}") for name in ids if name in used}
        )

    def drop_near(self) -> None:
        """Take out evaluation prompts that lie too close to a prompt of another split."""
        others = [name for name in SPLITS if name != EVALUATION]
        names = [name for name in others for _ in self.rows[name]]
        place, cosine = nearest(
            self.vectors(EVALUATION), np.concatenate([self.vectors(name) for name in others])
        )
        found = {}
        for row, where, value in zip(self.rows[EVALUATION], place.tolist(), cosine.tolist(), strict=True):
            if value > self._settings.max_evaluation_cosine:
                detail = f"cosine {value:.3f} to a prompt of {names[where]}"
                found[row["prompt_id"]] = ("near_other_split", detail)
        self.drop(EVALUATION, found)

    def record(self) -> dict[str, Any]:
        """What later generations must know of this one."""
        evaluated = [
            {"prompt_id": name} for name in sorted(row["prompt_id"] for row in self.rows[EVALUATION])
        ]
        shares = {name: self._settings.shares[name] for name in SPLITS}
        return {"salt": self._settings.salt, "shares": shares, "evaluated": evaluated}


def _vectors(io: StageIO, rows: Sequence[Row]) -> np.ndarray:
    table = read_table(io.dep("data/curated/vectors.parquet"))
    if table["prompt_id"].to_pylist() != [row["prompt_id"] for row in rows]:
        raise CurationError("data/curated/vectors.parquet: its prompts are not those of prompts.parquet")
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(rows), -1)


def _metrics(splits: _Splits, moved: Mapping[str, set[str]], largest: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {
            "prompts": len(rows),
            "users": len({row["user_id"] for row in rows}),
            "by_source": dict(sorted(Counter(row["source"] for row in rows).items())),
        }
        for name, rows in splits.rows.items()
    }
    found["removed"] = dict(sorted(Counter(row["reason"] for row in splits.removed).items()))
    found["moved_users"] = len(moved["moved_user"])
    found["largest_evaluation_cosine"] = None if largest is None else round(largest, 4)
    return found


def _warn_of_one_source(evaluated: Sequence[Row], every: Sequence[Row]) -> None:
    """Say, before anything is trained, that the gate will block for want of prompts of a source."""
    for source in sorted(set(SOURCES) - {row["source"] for row in evaluated}):
        fallen = sum(row["source"] == source for row in every)
        cause = (
            f"none of the {fallen} {source} prompts fell there, as happens with few users: take more logs or raise "
            "split.shares.evaluation"
            if fallen
            else f"the logs have no traffic of source {source} (docs/raw-logs.md says who logs it)"
        )
        _log.warning(
            "data/split/evaluation.parquet has no %s prompts, so the gate will block this generation: it has no win "
            "rate on them, and no gap between the sources; %s",
            source,
            cause,
        )


def run(io: StageIO) -> Mapping[str, Any]:
    """``data/curated/prompts.parquet`` to one table a split, what is in none, and a record for later generations.

    Returns:
        prompts and users of each split, prompts by source, prompts removed by reason, and the largest cosine between
        an evaluation prompt and a prompt of another split.

    Raises:
        CurationError: a split that has a share stays empty, splits are not disjoint, or the counts do not add up.
    """
    settings = io.settings.split
    rows = read_rows(io.dep("data/curated/prompts.parquet"))
    earlier = read_json(io.dep("inputs/splits.json"))["earlier"]
    splits = _Splits(rows, _vectors(io, rows), settings)
    splits.drop_moved(earlier)
    if not settings.reuse_evaluation:
        splits.drop_used(earlier)
    splits.drop_near()
    if empty := [name for name in SPLITS if settings.shares[name] > 0 and not splits.rows[name]]:
        users, why = len({row["user_id"] for row in rows}), dict(Counter(r["reason"] for r in splits.removed))
        hint = "; split.reuse_evaluation lets those evaluated before judge again" * (
            "evaluated_before" in why
        )
        raise CurationError(
            f"data/split: no prompt for {', '.join(empty)}: {len(rows)} prompts of {users} users are too few "
            f"for split.shares; take more logs or raise the share (removed: {why}){hint}"
        )
    _warn_of_one_source(splits.rows[EVALUATION], rows)
    vectors = {name: splits.vectors(name) for name in SPLITS}
    largest = prove_disjoint(splits.rows, vectors, settings.max_evaluation_cosine)
    kept = sum(map(len, splits.rows.values()))
    if kept + len(splits.removed) != len(rows):
        raise CurationError(
            f"data/split: {kept} prompts in splits and {len(splits.removed)} removed, but {len(rows)} read"
        )
    out = io.out("data/split")
    for name in SPLITS:
        write_rows(splits.rows[name], PROMPTS, out / f"{name}.parquet")
    write_rows(splits.removed, REMOVED, out / "removed.parquet")
    write_json(splits.record(), out / "record.json")
    moved: dict[str, set[str]] = defaultdict(set)
    for row in splits.removed:
        moved[row["reason"]].add(row["user_id"])
    return _metrics(splits, moved, largest)
