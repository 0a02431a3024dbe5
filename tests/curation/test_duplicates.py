import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.curation import duplicates
from flywheel_tasks.curation.duplicates import embed, exact_duplicates, near_duplicates, prompt_text
from flywheel_tasks.settings import Compute
from tests.curation.rows import prompt


def test_exact_duplicates_ignore_case_and_spacing_but_not_the_card():
    rows = [
        prompt("p1", "Hi  there"),
        prompt("p2", "hi there"),
        prompt("p3", "hi there", card_id="c2"),
        prompt("p4", "hi there", before=[{"role": "assistant", "content": "Welcome."}]),
    ]
    assert exact_duplicates(rows) == {"p2": "p1"}


def unit(angles):
    return np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)


def test_near_duplicates_name_the_kept_prompt():
    found = near_duplicates(unit([0.0, 0.1, 1.0, 0.05, 1.05]), 0.99)
    assert {row: kept for row, (kept, _) in found.items()} == {1: 0, 3: 0, 4: 2}
    assert found[3][1] == pytest.approx(np.cos(0.05), abs=1e-6)


def test_a_prompt_near_a_dropped_one_only_is_kept():
    assert set(near_duplicates(unit([0.0, 0.2, 0.4]), 0.95)) == {1}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 6.28), min_size=1, max_size=30), st.integers(1, 7))
def test_chunks_do_not_matter_and_what_is_kept_is_apart(angles, chunk):
    vectors, whole = unit(angles), near_duplicates(unit(angles), 0.9)
    before = duplicates._CHUNK
    duplicates._CHUNK = chunk
    try:
        parts = near_duplicates(vectors, 0.9)
    finally:
        duplicates._CHUNK = before
    assert set(parts) == set(whole)
    kept = [row for row in range(len(angles)) if row not in whole]
    cosines = vectors[kept] @ vectors[kept].T - 2 * np.eye(len(kept))
    assert cosines.max() <= 0.9 + 1e-6


def test_embedding_gives_unit_vectors_in_order(tiny_models):
    texts = [
        prompt_text(prompt(f"p{k}", text), "Mae")
        for k, text in enumerate(["Rain.", "A much longer text.", "Rain."])
    ]
    vectors = embed(texts, tiny_models / "embedder", Compute(precision="float32", threads=1))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
