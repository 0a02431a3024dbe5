"""The proof that evaluation and the other splits share nothing: no user, conversation, text, or near-duplicate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flywheel_tasks.curation.duplicates import normal_key
from flywheel_tasks.curation.tables import CurationError

Row = Mapping[str, Any]
_EVALUATION = "evaluation"
_ROWS, _OTHERS = 1024, 32_768  # compared at once


def nearest(asked: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the nearest of the others and the cosine to it, for each asked vector, by exact search.

    Args:
        asked: unit vectors (rows, dimension).
        others: unit vectors (others, dimension); without any, places are -1 and cosines -1.
    """
    place, cosine = np.full(len(asked), -1, dtype=np.int64), np.full(len(asked), -1.0, dtype=np.float32)
    for start in range(0, len(asked), _ROWS):
        block = slice(start, start + _ROWS)
        for begin in range(0, len(others), _OTHERS):
            found = asked[block] @ others[begin : begin + _OTHERS].T
            best = found.argmax(axis=1)
            values = found[np.arange(len(best)), best]
            # A cosine that is no number must come out, so that the proof fails on it.
            better = ~(values <= cosine[block]) & ~np.isnan(cosine[block])
            place[block] = np.where(better, best + begin, place[block])
            cosine[block] = np.where(better, values, cosine[block])
    return place, cosine


def _owners(splits: Mapping[str, Sequence[Row]], what: str, key: Any) -> None:
    homes: dict[Any, str] = {}
    for name, rows in splits.items():
        for row in rows:
            if homes.setdefault(key(row), name) != name:
                shown = row["prompt_id"] if what == "text of prompt" else key(row)
                raise CurationError(f"data/split: {what} {shown} is in both {homes[key(row)]} and {name}")


def prove_disjoint(
    splits: Mapping[str, Sequence[Row]], vectors: Mapping[str, np.ndarray], limit: float
) -> float | None:
    """Check that no two splits share a user, a conversation or a text, and that evaluation stands apart.

    Args:
        splits: rows by split.
        vectors: unit vectors of the rows by split, in their order (rows, dimension).
        limit: cosine that no evaluation prompt may pass to a prompt of another split.

    Returns:
        the largest such cosine; None where there is no pair.

    Raises:
        CurationError: it is not so; the message names what is shared and where.
    """
    _owners(splits, "user", lambda row: row["user_id"])
    _owners(splits, "conversation", lambda row: row["conversation_id"])
    _owners(splits, "text of prompt", normal_key)
    largest = None
    for name, rows in splits.items():
        if len(rows) != len(vectors[name]):
            raise CurationError(
                f"data/split: {name} has {len(rows)} prompts but {len(vectors[name])} vectors"
            )
        if name == _EVALUATION or not rows or not splits[_EVALUATION]:
            continue
        place, cosine = nearest(vectors[_EVALUATION], vectors[name])
        worst = int(cosine.argmax())
        # Written so that a cosine that is no number fails.
        if not (cosine <= limit).all():
            asked, other = splits[_EVALUATION][worst]["prompt_id"], rows[place[worst]]["prompt_id"]
            raise CurationError(
                f"data/split: evaluation prompt {asked} has cosine {cosine[worst]:.3f} to {other} in {name}, "
                f"more than {limit}"
            )
        largest = max(float(cosine[worst]), -1.0 if largest is None else largest)
    return largest
