"""The diversity step of curation: exact duplicates, near-duplicates, topics, and a report of what was pruned."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flywheel_tasks.curation.cells import Cells, cell_count, kmeans, make_cells, nearest
from flywheel_tasks.curation.embedding import embed
from flywheel_tasks.curation.near_duplicates import Pruned, nearest_other, prune, prune_to_share
from flywheel_tasks.curation.tables import CLUSTERS, DUPLICATES
from flywheel_tasks.curation.traffic import Traffic
from flywheel_tasks.evaluation.intervals import share
from flywheel_tasks.settings import Compute, Curate

_SHOWN = 160  # characters of a text in the report
_MEASURED = 1000  # kept prompts whose exact nearest neighbour is looked for
_TOPIC_ITERATIONS = 20


@dataclass(frozen=True)
class Diversity:
    """What the step found.

    Attributes:
        vectors: unit vectors of the prompts that differ (prompts, dimension).
        rows: their places in the traffic, in its order.
        pruned: what became of each of them.
        cells: theirs.
        limit: cosine above which a prompt was dropped.
        exact: (dropped, kept) places of exact duplicates.
        cached: vectors that were known from earlier runs.
    """

    vectors: np.ndarray
    rows: np.ndarray
    pruned: Pruned
    cells: Cells
    limit: float
    exact: list[tuple[int, int]]
    cached: int


def drop_exact(traffic: Traffic) -> list[tuple[int, int]]:
    """Take out what repeats an earlier prompt word for word; (dropped, kept) places."""
    first: dict[bytes, int] = {}
    found = []
    for row in traffic.alive.tolist():
        kept = first.setdefault(traffic.keys[row], row)
        if kept != row:
            found.append((row, kept))
    traffic.drop(
        [row for row, _ in found], "duplicate", "repeats an earlier prompt; duplicates.parquet names it"
    )
    return found


def diversify(
    traffic: Traffic, embedder: Path, settings: Curate, compute: Compute, seed: int, cache: Path
) -> Diversity | None:
    """Take out exact duplicates, then prompts too close to a kept one; None where no prompt is left.

    Of prompts that are alike the earliest stays. Choosing by signals or length instead would bias what the signal
    models and the marginals see.

    Args:
        traffic: is changed.
        embedder: a sentence-transformers folder.
        settings: limits.
        compute: threads.
        seed: of k-means.
        cache: folder of the embeddings of earlier runs.
    """
    exact = drop_exact(traffic)
    rows = traffic.alive
    if not len(rows):
        return None
    vectors, cached = embed(
        [traffic.texts[row] for row in rows.tolist()],
        embedder,
        compute,
        cache_dir=cache,
        cache_rows=settings.cached_embeddings,
        progress=sys.stderr.isatty(),
    )
    limit = settings.duplicate_cosine
    cells = make_cells(vectors, cell_count(len(rows)), settings.probes, seed, compute.threads)
    if settings.keep_share is None:
        pruned = prune(vectors, cells, limit, compute.threads)
    else:
        pruned, limit = prune_to_share(vectors, cells, limit, settings.keep_share, compute.threads)
    gone = np.flatnonzero(pruned.keeper >= 0)
    traffic.drop(
        rows[gone].tolist(),
        "near_duplicate",
        [f"cosine {pruned.cosine[row]:.3f} to a kept prompt; duplicates.parquet names it" for row in gone],
    )
    return Diversity(vectors, rows, pruned, cells, limit, exact, cached)


def add_topics(traffic: Traffic, found: Diversity, topics: int, seed: int, threads: int) -> None:
    """Add the dimension ``topic``: the k-means cluster of each prompt that was embedded, of its repeats too.

    Prompts that a filter took out before have no vector: their topic is empty, and the mix of topics in the
    traffic is that of the others.

    Args:
        traffic: is changed.
        found: the vectors.
        topics: clusters, at most one for ten prompts.
        seed: of k-means.
        threads: of faiss.
    """
    count = max(1, min(topics, len(found.rows) // 10))
    centroids = kmeans(found.vectors, count, seed, threads, _TOPIC_ITERATIONS)
    labels = nearest(found.vectors, centroids, 1, threads)[:, 0].tolist()
    topic = [""] * len(traffic)
    for row, label in zip(found.rows.tolist(), labels, strict=True):
        topic[row] = f"{label:02d}"
    for row, kept in found.exact:
        topic[row] = topic[kept]
    traffic.dimensions["topic"] = topic


def _shown(text: str) -> str:
    """Escaped (no control characters) and shortened."""
    flat = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return flat if len(flat) <= _SHOWN else flat[: _SHOWN - 1] + "…"


def duplicates_table(traffic: Traffic, found: Diversity) -> pa.Table:
    """One row a dropped duplicate: both ids, cosine, cells, and the texts, shortened."""
    names, texts = traffic.ids["prompt_id"], traffic.texts
    rows = [("exact", row, kept, 1.0, -1, False) for row, kept in found.exact]
    home, keeper = found.cells.home, found.pruned.keeper
    for row in np.flatnonzero(keeper >= 0).tolist():
        kept = int(keeper[row])
        # Rounded: the last digits of a vector depend on which texts were computed together.
        cosine = round(float(found.pruned.cosine[row]), 4)
        across = bool(home[row] != home[kept])
        rows.append(("near", int(found.rows[row]), int(found.rows[kept]), cosine, int(home[row]), across))
    columns: dict[str, list[Any]] = {
        "kind": [row[0] for row in rows],
        "dropped_id": [names[row[1]] for row in rows],
        "kept_id": [names[row[2]] for row in rows],
        "cosine": [row[3] for row in rows],
        "cluster": [row[4] for row in rows],
        "across_clusters": [row[5] for row in rows],
        "dropped_text": [_shown(texts[row[1]]) for row in rows],
        "kept_text": [_shown(texts[row[2]]) for row in rows],
    }
    return pa.table(columns, schema=DUPLICATES)


def clusters_table(found: Diversity) -> pa.Table:
    """Size of each k-means cell, prompts pruned in it, and their share."""
    count = len(found.cells.centroids)
    sizes = np.bincount(found.cells.home, minlength=count)
    gone = np.bincount(found.cells.home[found.pruned.keeper >= 0], minlength=count)
    shares = gone / np.maximum(sizes, 1)
    columns = {"cluster": np.arange(count), "prompts": sizes, "pruned": gone, "pruned_share": shares}
    return pa.table(columns).cast(CLUSTERS)


def vectors_table(traffic: Traffic, found: Diversity) -> pa.Table:
    """Vectors (lists of float32, all of one length) of the prompts that are in, in order; the split uses them."""
    place = np.full(len(traffic), -1, dtype=np.int64)
    place[found.rows] = np.arange(len(found.rows))
    alive = traffic.alive
    flat = pa.array(found.vectors[place[alive]].reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    return pa.table(
        {"prompt_id": [traffic.ids["prompt_id"][row] for row in alive.tolist()], "vector": vectors}
    )


def diversity_metrics(traffic: Traffic, found: Diversity, seed: int, threads: int) -> dict[str, Any]:
    """Counts, clusters, and what is still alike: measured by exact search for a sample of the kept prompts."""
    kept, home, keeper = found.pruned.kept, found.cells.home, found.pruned.keeper
    near = np.flatnonzero(keeper >= 0)
    clusters = clusters_table(found)
    sizes, shares = clusters["prompts"].to_numpy(), clusters["pruned_share"].to_numpy()
    drawn = np.sort(np.random.default_rng(seed).choice(kept, min(_MEASURED, len(kept)), replace=False))
    _, cosines = nearest_other(found.vectors, drawn, kept, threads)
    users = [traffic.ids["user_id"][found.rows[row]] for row in drawn.tolist()]
    return {
        "embedded": len(found.rows),
        "from_cache": found.cached,
        "limit": round(found.limit, 4),
        "exact": len(found.exact),
        "near": len(near),
        "near_across_clusters": int((home[near] != home[keeper[near]]).sum()),
        "kept_share": len(kept) / len(found.rows),
        "still_alike": share((cosines > found.limit).astype(float).tolist(), users),
        "clusters": {
            "count": len(sizes),
            "median_size": float(np.median(sizes)),
            "largest_size": int(sizes.max()),
            "largest_pruned_share": float(shares.max()),
        },
    }
