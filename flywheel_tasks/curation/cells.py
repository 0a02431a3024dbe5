"""K-means cells of embeddings, and which cells a near-duplicate of a row can lie in."""

from dataclasses import dataclass

import faiss
import numpy as np

_ITERATIONS = 8
_PER_CENTROID = 48  # rows of the training sample for each centroid
_EXACT_ROWS = 4096  # so few rows are one cell: every pair is compared


@dataclass(frozen=True)
class Cells:
    """Centroids and the cells of each row.

    Attributes:
        centroids: unit vectors (cells, dimension).
        probes: nearest cells of each row (rows, probed cells), the row's own cell first.
    """

    centroids: np.ndarray
    probes: np.ndarray

    @property
    def home(self) -> np.ndarray:
        """The cell of each row."""
        home: np.ndarray = self.probes[:, 0]
        return home


def cell_count(rows: int) -> int:
    """Cells for a number of rows: one up to 4,096 rows, else about the square root of the rows, rounded up.

    Comparing costs rows x rows / cells and assigning rows x cells: together least near the square root.
    """
    return 1 if rows <= _EXACT_ROWS else int(np.ceil(np.sqrt(rows)))


def kmeans(
    vectors: np.ndarray, count: int, seed: int, threads: int, iterations: int = _ITERATIONS
) -> np.ndarray:
    """Centroids of spherical k-means, (count, dimension), trained on a sample of the rows.

    Args:
        vectors: unit vectors (rows, dimension), float32.
        count: of clusters, at most the number of rows.
        seed: of the sample and the start.
        threads: of faiss.
        iterations: of Lloyd's algorithm.
    """
    faiss.omp_set_num_threads(threads)
    if count == 1:
        mean = vectors.mean(axis=0, keepdims=True)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)
    sample = min(len(vectors), max(_PER_CENTROID * count, 256))
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), sample, replace=False))
    trained = faiss.Kmeans(
        vectors.shape[1],
        count,
        niter=iterations,
        seed=seed % 2**31,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=sample,  # the sample is drawn above
    )
    trained.train(np.ascontiguousarray(vectors[rows]))
    return np.asarray(trained.centroids, dtype=np.float32)


def nearest(vectors: np.ndarray, centroids: np.ndarray, count: int, threads: int) -> np.ndarray:
    """The ``count`` nearest centroids of each row by cosine, nearest first: (rows, count), int64."""
    faiss.omp_set_num_threads(threads)
    count = min(count, len(centroids))
    _, found = faiss.knn(vectors, centroids, count, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(found, dtype=np.int64)


def make_cells(vectors: np.ndarray, count: int, probes: int, seed: int, threads: int) -> Cells:
    """Train cells and find each row's.

    Args:
        vectors: unit vectors (rows, dimension), float32.
        count: of cells.
        probes: cells searched for each row.
        seed: of k-means.
        threads: of faiss.
    """
    centroids = kmeans(vectors, min(count, len(vectors)), seed, threads)
    return Cells(centroids, nearest(vectors, centroids, probes, threads))
