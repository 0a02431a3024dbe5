"""Near-duplicates among given embeddings: time and recall of the project's pruning against its peers.

Run: ``python -m benchmarks.diversity --rows 200000``. Peers in the same run, on the same vectors, threads and
threshold: semhash (its default index, usearch HNSW, and its own grouping), and SemDeDup as it is plainly written with
faiss or scikit-learn k-means (all rows, upper triangle of each cluster), for several numbers of clusters. Recall: of
all pairs above the threshold with a row of a random sample, found by exact brute force, the share of which at least
one row is dropped.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import faiss
import numpy as np
import torch
import typer
from semhash import SemHash
from sklearn.cluster import MiniBatchKMeans

from flywheel_tasks.curation.cells import cell_count, make_cells
from flywheel_tasks.curation.near_duplicates import prune

_SPECTRUM = 0.35  # decay of the spread along principal axes, near that of MiniLM on chat turns


def planted(rows: int, dimension: int, share: float, seed: int) -> np.ndarray:
    """Clustered unit vectors, a share of which are near copies of others, at cosines of about 0.85 to 0.999.

    Args:
        rows: of the result.
        dimension: of a vector.
        share: of the rows that are near copies.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    axes = np.arange(1, dimension + 1, dtype=np.float32) ** -_SPECTRUM
    own = rows - int(share * rows)
    topics = random.standard_normal((max(8, rows // 150), dimension), dtype=np.float32) * axes
    # Topic sizes are uneven, as in traffic.
    weights = random.pareto(1.3, len(topics)) + 0.05
    topic = random.choice(len(topics), own, p=weights / weights.sum())
    spread = random.uniform(0.6, 1.3, own).astype(np.float32)[:, None]
    base = topics[topic] + spread * axes * random.standard_normal((own, dimension), dtype=np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    source = base[random.integers(own, size=rows - own)]
    tangent = axes * random.standard_normal(source.shape, dtype=np.float32)
    tangent -= (tangent * source).sum(axis=1, keepdims=True) * source
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    cosine = (1 - 0.15 * random.random(len(source), dtype=np.float32) ** 2)[:, None]
    copies = cosine * source + np.sqrt(1 - cosine**2) * tangent
    vectors = np.concatenate([base, copies]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors[random.permutation(rows)])


def exact_pairs(vectors: np.ndarray, limit: float, asked: np.ndarray) -> np.ndarray:
    """All pairs above the limit of some rows with any other, by blocked matrix products: (pairs, 2)."""
    table, size = torch.from_numpy(vectors), 2048
    found = []
    for start in range(0, len(asked), size):
        rows = torch.from_numpy(asked[start : start + size])
        for begin in range(0, len(table), 4 * size):
            row, other = torch.nonzero(table[rows] @ table[begin : begin + 4 * size].T > limit, as_tuple=True)
            pairs = torch.stack([rows[row], other + begin], dim=1)
            found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    return torch.cat(found).numpy()


def ours(vectors: np.ndarray, limit: float, threads: int, probes: int) -> np.ndarray:
    """Dropped rows by the project's pruning."""
    cells = make_cells(vectors, cell_count(len(vectors)), probes, 1, threads)
    return np.flatnonzero(prune(vectors, cells, limit, threads).keeper >= 0)


def _triangles(vectors: np.ndarray, labels: np.ndarray, limit: float) -> np.ndarray:
    """SemDeDup within clusters: a row goes if an earlier one of its cluster is above the limit."""
    table, dropped = torch.from_numpy(vectors), []
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        inside = table[members]
        cosines = torch.triu(inside @ inside.T, diagonal=1)
        dropped.append(members[(cosines.amax(dim=0) > limit).numpy()])
    return np.concatenate(dropped)


def faiss_semdedup(vectors: np.ndarray, limit: float, clusters: int) -> np.ndarray:
    """Dropped rows by SemDeDup on faiss k-means at its defaults."""
    trained = faiss.Kmeans(vectors.shape[1], clusters, spherical=True, seed=1)
    trained.train(vectors)
    _, labels = trained.index.search(vectors, 1)
    return _triangles(vectors, labels[:, 0], limit)


def sklearn_semdedup(vectors: np.ndarray, limit: float, clusters: int) -> np.ndarray:
    """Dropped rows by SemDeDup on scikit-learn's mini-batch k-means."""
    labels = MiniBatchKMeans(clusters, random_state=1, n_init=1, batch_size=4096).fit_predict(vectors)
    return _triangles(vectors, labels, limit)


class _NoModel:
    def encode(self, *_: object, **__: object) -> np.ndarray:
        raise NotImplementedError("the vectors are given")


def semhash(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Dropped rows by semhash at its defaults."""
    names = [str(row) for row in range(len(vectors))]
    made = SemHash.from_embeddings(vectors, names, model=_NoModel())
    selected = made.self_deduplicate(threshold=limit).selected
    return np.setdiff1d(np.arange(len(vectors)), np.array([int(str(name)) for name in selected]))


def main(
    rows: Annotated[int, typer.Option(help="Embeddings.")] = 200_000,
    dimension: Annotated[int, typer.Option(help="Of an embedding.")] = 384,
    share: Annotated[float, typer.Option(help="Share of planted near copies.")] = 0.15,
    limit: Annotated[float, typer.Option(help="Cosine above which a row repeats another.")] = 0.95,
    probes: Annotated[int, typer.Option(help="Cells searched for each row.")] = 4,
    threads: Annotated[int, typer.Option(help="Threads, all.")] = 2,
    sample: Annotated[int, typer.Option(help="Rows whose near-duplicates brute force looks for.")] = 10_000,
    peers: Annotated[str, typer.Option(help="Comma-separated.")] = "semhash,faiss,sklearn",
) -> None:
    """Print seconds, dropped rows and recall of each, and the ratio to the fastest peer."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    vectors = planted(rows, dimension, share, 1)
    started = time.perf_counter()
    asked = np.sort(np.random.default_rng(2).choice(rows, min(sample, rows), replace=False))
    pairs = exact_pairs(vectors, limit, asked)
    # Every pair once needs half of the products of all rows.
    brute = (time.perf_counter() - started) * rows / len(asked) / 2
    print(f"{rows} x {dimension}, threshold {limit}: {len(pairs)} pairs of {len(asked)} rows with any other")
    runs: dict[str, Callable[[], np.ndarray]] = {
        f"flywheel, {probes} probes": lambda: ours(vectors, limit, threads, probes)
    }
    sizes = sorted({max(2, int(rows**0.5 * factor)) for factor in (0.1, 0.25, 0.5, 1.0)})
    for name, work in (("faiss", faiss_semdedup), ("sklearn", sklearn_semdedup)):
        for size in sizes:
            if name in peers.split(","):
                runs[f"{name} SemDeDup, {size} clusters"] = partial(work, vectors, limit, size)
    if "semhash" in peers.split(","):
        runs["semhash"] = lambda: semhash(vectors, limit)
    print(f"{'brute force (extrapolated)':<34} {brute:8.1f} s  recall 1.0000", flush=True)
    seconds: dict[str, float] = {}
    for name, run in runs.items():
        torch.set_num_threads(threads)
        started = time.perf_counter()
        dropped = run()
        seconds[name] = time.perf_counter() - started
        gone = np.zeros(rows, dtype=bool)
        gone[dropped] = True
        recall = float((gone[pairs[:, 0]] | gone[pairs[:, 1]]).mean()) if len(pairs) else 1.0
        print(f"{name:<34} {seconds[name]:8.1f} s  recall {recall:.4f}  dropped {len(dropped)}", flush=True)
    mine, *others = seconds.values()
    if others:
        print(f"the fastest peer takes {min(others) / mine:.2f} times as long")


if __name__ == "__main__":
    typer.run(main)
