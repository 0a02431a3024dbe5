import multiprocessing
import os
import signal
import sqlite3

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from flywheel_tasks.curation.embedding import PromptEmbedder, embed
from flywheel_tasks.curation.embedding_cache import EmbeddingCache, text_key
from flywheel_tasks.curation.packed_bert import fits, packs
from flywheel_tasks.settings import Compute

COMPUTE = Compute(precision="float32", threads=2)
TEXTS = [
    "Rain.",
    "",
    "  odd \n spacing\t here ",
    "A much longer text about a harbour, " * 30,
    "日本語とemoji 🎉",
    "Rain.",
    "word " * 400,
    *(f"number {k} of some {'very ' * (k % 5)}short ones" for k in range(40)),
]


def test_vectors_are_those_of_the_model(tiny_models):
    plain = SentenceTransformer(str(tiny_models / "embedder"), local_files_only=True, device="cpu")
    expected = plain.encode(TEXTS, normalize_embeddings=True)
    embedder = PromptEmbedder(tiny_models / "embedder", COMPUTE)
    assert fits(plain)
    assert np.abs(embedder.encode(TEXTS) - expected).max() < 1e-5
    embedder._packed = None
    assert np.abs(embedder.encode(TEXTS) - expected).max() < 1e-5
    assert embedder.encode([]).shape == (0, 384)


def test_packs_hold_every_text_once_and_keep_to_the_budget():
    lengths = [5, 30, 7, 7, 100, 1, 30]
    found = list(packs(lengths, 40))
    assert sorted(text for pack in found for text in pack) == list(range(7))
    assert all(len(pack) == 1 or sum(lengths[text] for text in pack) <= 40 for pack in found)
    order = [lengths[text] for pack in found for text in pack]
    assert order == sorted(order, reverse=True)


def test_vectors_come_from_the_cache_and_repeats_are_computed_once(tiny_models, tmp_path):
    place = {"cache_dir": tmp_path, "cache_rows": 1000}
    cold, known = embed(TEXTS, tiny_models / "embedder", COMPUTE, **place)
    assert known == 0
    warm, known = embed([*TEXTS, "new"], tiny_models / "embedder", COMPUTE, **place)
    assert known == len(set(TEXTS))
    assert (warm[:-1] == cold).all()
    assert (cold[0] == cold[5]).all()
    assert np.allclose(np.linalg.norm(cold, axis=1), 1, atol=1e-5)


def filled(folder, names, most=1000):
    cache = EmbeddingCache(folder, most)
    cache.put(
        {text_key(name): np.full(4, float(place), dtype=np.float32) for place, name in enumerate(names)}
    )
    return cache


def test_the_longest_unused_go_first(tmp_path):
    filled(tmp_path, ["a", "b", "c"]).close()
    cache = EmbeddingCache(tmp_path, 2)
    assert set(cache.get([text_key("a"), text_key("zz")])) == {text_key("a")}
    cache.put({text_key("d"): np.zeros(4, dtype=np.float32)})
    cache.close()
    cache = EmbeddingCache(tmp_path, 2)
    assert set(cache.get([text_key(name) for name in "abcd"])) == {text_key("a"), text_key("d")}
    assert cache.forget([text_key("a"), text_key("b")]) == 1
    assert not cache.get([text_key("a")])


def test_no_text_is_in_the_file(tmp_path):
    filled(tmp_path, ["my secret words"]).close()
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_broken_file_only_costs_time(tmp_path):
    filled(tmp_path, ["a"]).close()
    (tmp_path / "vectors.sqlite").write_bytes(b"not a database" * 100)
    with pytest.warns(UserWarning, match="starts empty"):
        cache = EmbeddingCache(tmp_path, 10)
    assert cache.get([text_key("a")]) == {}


def _writer(folder, number):
    for step in range(50):
        filled(folder, [f"{number}-{step}-{k}" for k in range(20)], 5000).close()
        if number == 0 and step == 10:
            os.kill(os.getpid(), signal.SIGKILL)


def test_two_writers_and_a_kill_leave_a_whole_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_writer, args=(tmp_path, number)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0]
    with sqlite3.connect(tmp_path / "vectors.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cache = EmbeddingCache(tmp_path, 5000)
    assert len(cache.get([text_key(f"1-{step}-{k}") for step in (0, 49) for k in range(20)])) == 40
