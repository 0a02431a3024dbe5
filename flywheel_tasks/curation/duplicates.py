"""Prompts that say the same as one that is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from flywheel_tasks.settings import Compute

Row = Mapping[str, Any]
_CHUNK = 2048  # rows compared at once: the memory is chunk x kept floats


def normal_key(row: Row) -> tuple[str, ...]:
    """Card and history without case and spacing: equal keys are exact duplicates."""
    return (
        row["card_id"],
        *(f"{turn['role']}:{' '.join(turn['content'].casefold().split())}" for turn in row["history"]),
    )


def exact_duplicates(rows: Sequence[Row]) -> dict[str, str]:
    """Prompt ids to drop, each with the id of the earlier prompt that it repeats."""
    first: dict[tuple[str, ...], str] = {}
    found: dict[str, str] = {}
    for row in rows:
        kept = first.setdefault(normal_key(row), row["prompt_id"])
        if kept != row["prompt_id"]:
            found[row["prompt_id"]] = kept
    return found


def prompt_text(row: Row, card_name: str) -> str:
    """What is embedded: the character's name, the turn before the last, and the last user turn."""
    return "\n".join([card_name, *(turn["content"] for turn in row["history"][-2:])])


def embed(texts: Sequence[str], model_dir: Path, compute: Compute, *, progress: bool = False) -> np.ndarray:
    """Unit vectors of texts, (texts, dimension), float32.

    Args:
        texts: what to embed.
        model_dir: a sentence-transformers folder.
        compute: threads.
        progress: show a bar.
    """
    torch.set_num_threads(compute.threads)
    model = SentenceTransformer(str(model_dir), local_files_only=True)
    vectors: np.ndarray = model.encode(
        list(texts),
        batch_size=64,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=progress,
    )
    return vectors.astype(np.float32).reshape(len(texts), -1)


def near_duplicates(vectors: np.ndarray, limit: float) -> dict[int, tuple[int, float]]:
    """Rows to drop, greedily in order: those whose cosine to an earlier kept row is above the limit.

    Args:
        vectors: unit vectors (rows, dimension).
        limit: cosine above which a row repeats a kept one.

    Returns:
        by dropped row: the closest kept row and the cosine to it.
    """
    kept: list[int] = []
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(vectors), _CHUNK):
        chunk = vectors[start : start + _CHUNK]
        earlier = np.array(kept, dtype=np.int64)
        before = chunk @ vectors[earlier].T  # to what the earlier chunks kept
        inside = chunk @ chunk.T
        fresh: list[int] = []  # kept rows of this chunk, counted from its start
        for row in range(len(chunk)):
            cosines = np.concatenate([before[row], inside[row, fresh]])
            candidates = [*kept, *(start + k for k in fresh)]
            closest = int(cosines.argmax()) if len(cosines) else -1
            if closest >= 0 and cosines[closest] > limit:
                found[start + row] = (candidates[closest], float(cosines[closest]))
            else:
                fresh.append(row)
        kept.extend(start + k for k in fresh)
    return found
