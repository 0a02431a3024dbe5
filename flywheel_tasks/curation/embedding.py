"""Sentence embeddings of prompts: each text once, without padding, kept between runs."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from flywheel_tasks.curation.embedding_cache import EmbeddingCache, text_key
from flywheel_tasks.curation.packed_bert import PackedBert, fits, packs
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import tree_digest

_PACK_TOKENS = 1024  # small enough that a layer's intermediate stays in a core's cache
_CHUNK_TEXTS = 65_536  # tokenised, computed and cached together: bounds the memory and what a kill can lose


class PromptEmbedder:
    """A sentence-transformers model with one worker a thread; vectors equal those of its own ``encode``.

    Two packs at once on one thread each use two cores better than one pack on two threads, which wait for each
    other at every layer. A model that is not a plain mean-pooled BERT, or that lies on a GPU, runs through
    ``encode`` itself.

    Args:
        folder: a sentence-transformers folder.
        compute: threads.
    """

    def __init__(self, folder: Path, compute: Compute) -> None:
        self._threads = compute.threads
        self._model = SentenceTransformer(str(folder), local_files_only=True)
        self._model.eval()
        on_cpu = self._model.device.type == "cpu"
        self._packed = PackedBert(self._model[0].auto_model) if on_cpu and fits(self._model) else None

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], done: Callable[[int], None] | None = None) -> np.ndarray:
        """Unit vectors (texts, dimension), float32; equal texts are computed once.

        Args:
            texts: what to embed; the model cuts what is longer than it reads.
            done: told the number of texts after each pack.
        """
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        unique = self._encode_unique(list(place), done or (lambda _: None))
        return unique[np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts))]

    def _encode_unique(self, texts: list[str], done: Callable[[int], None]) -> np.ndarray:
        if not texts or self._packed is None:
            torch.set_num_threads(self._threads)
            vectors = self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
            done(len(texts))
            return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
        packed = self._packed
        rows = self._model.tokenizer(texts, truncation=True, max_length=self._model.max_seq_length)[
            "input_ids"
        ]
        found = np.empty((len(texts), self.dimension), dtype=np.float32)

        def work(pack: list[int]) -> int:
            found[pack] = packed([rows[text] for text in pack]).numpy()
            return len(pack)

        before = torch.get_num_threads()
        torch.set_num_threads(1)  # of each worker
        try:
            with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for count in pool.map(work, packs([len(row) for row in rows], _PACK_TOKENS)):
                    done(count)
        finally:
            torch.set_num_threads(before)
        return found


def embed(
    texts: Sequence[str],
    model_dir: Path,
    compute: Compute,
    *,
    cache_dir: Path | None = None,
    cache_rows: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, int]:
    """Unit vectors of texts, (texts, dimension), float32, and how many different texts the cache knew.

    Args:
        texts: what to embed.
        model_dir: a sentence-transformers folder.
        compute: threads.
        cache_dir: where vectors are kept between runs, by the digest of the model; None keeps none.
        cache_rows: most vectors that are kept; the longest unused go first.
        progress: show a bar.
    """
    from rich.progress import Progress

    first: dict[bytes, int] = {}
    place = np.fromiter((first.setdefault(text_key(text), row) for row, text in enumerate(texts)), np.int64)
    keys, embedder, cache, known = list(first), None, None, 0
    if cache_dir is not None and cache_rows:
        cache = EmbeddingCache(cache_dir / tree_digest(model_dir).removeprefix("sha256:"), cache_rows)
    vectors = np.empty((0, 0), dtype=np.float32)
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("embed", total=len(keys))
        for start in range(0, len(keys), _CHUNK_TEXTS):
            chunk = keys[start : start + _CHUNK_TEXTS]
            found = {} if cache is None else cache.get(chunk)
            known += len(found)
            bar.advance(task, len(found))
            if missing := [key for key in chunk if key not in found]:
                embedder = embedder or PromptEmbedder(model_dir, compute)
                made = embedder.encode([texts[first[key]] for key in missing], lambda n: bar.advance(task, n))
                fresh = dict(zip(missing, made, strict=True))
                if cache is not None:
                    cache.put(fresh)
                found |= fresh
            if not vectors.size:
                vectors = np.empty((len(texts), len(found[chunk[0]])), dtype=np.float32)
            for key in chunk:
                vectors[first[key]] = found[key]
    if cache is not None:
        cache.close()
    repeats = np.flatnonzero(place != np.arange(len(texts)))
    vectors[repeats] = vectors[place[repeats]]
    return vectors, known
