import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.curation import near_duplicates
from flywheel_tasks.curation.cells import cell_count, kmeans, make_cells
from flywheel_tasks.curation.near_duplicates import nearest_other, prune, prune_to_share


def unit(angles):
    return np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)


def one_cell(vectors):
    return make_cells(vectors, 1, 1, 0, 1)


def clustered(rows, seed=0, dimension=16):
    """Points around some centres, a third of them near copies of others."""
    random = np.random.default_rng(seed)
    base = random.standard_normal((8, dimension))[random.integers(8, size=rows)]
    base = base + random.standard_normal(base.shape)
    copies = rows // 3
    base[:copies] = base[rows - copies :] + 0.05 * random.standard_normal((copies, dimension))
    return (base / np.linalg.norm(base, axis=1, keepdims=True)).astype(np.float32)


def brute(vectors, limit):
    """Greedy in order, row by row."""
    kept = []
    for row in range(len(vectors)):
        if not kept or (vectors[kept] @ vectors[row]).max() <= limit:
            kept.append(row)
    return kept


def test_the_kept_prompt_is_named():
    vectors = unit([0.0, 0.1, 1.0, 0.05, 1.05])
    found = prune(vectors, one_cell(vectors), 0.99, 1)
    assert found.keeper.tolist() == [-1, 0, -1, 0, 2]
    assert found.cosine[3] == pytest.approx(np.cos(0.05), abs=1e-6)


def test_a_row_near_a_dropped_one_only_is_kept():
    vectors = unit([0.0, 0.2, 0.4])
    assert prune(vectors, one_cell(vectors), 0.95, 1).kept.tolist() == [0, 2]


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 7), st.integers(1, 5))
def test_blocks_do_not_matter_and_one_cell_is_brute_force(rows, seed, first, block):
    vectors = clustered(rows, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_FIRST_BLOCK", first)
        patch.setattr(near_duplicates, "_BLOCK", block)
        found = prune(vectors, one_cell(vectors), 0.9, 2)
    assert found.kept.tolist() == brute(vectors, 0.9)
    gone = np.flatnonzero(found.keeper >= 0)
    cosines = (vectors[gone] * vectors[found.keeper[gone]]).sum(axis=1)
    assert np.allclose(cosines, found.cosine[gone], atol=1e-5)
    assert (found.keeper[found.keeper[gone]] == -1).all()


def test_all_probes_are_brute_force_and_one_probe_misses_across_borders_only():
    vectors = clustered(900)
    whole = make_cells(vectors, 20, 20, 1, 1)
    assert prune(vectors, whole, 0.9, 2).kept.tolist() == brute(vectors, 0.9)
    single = make_cells(vectors, 20, 1, 1, 1)
    found = prune(vectors, single, 0.9, 2)
    gone = np.flatnonzero(found.keeper >= 0)
    assert (single.home[gone] == single.home[found.keeper[gone]]).all()
    for cell in range(20):
        inside = np.flatnonzero(single.home == cell)
        assert [row for row in found.kept if single.home[row] == cell] == inside[
            brute(vectors[inside], 0.9)
        ].tolist()


@settings(max_examples=15)
@given(st.integers(2, 120), st.integers(0, 99), st.floats(0.05, 1.0))
def test_a_share_is_met_exactly_or_the_limit_alone_took_more(rows, seed, share):
    vectors = clustered(rows, seed)
    cells, wanted = one_cell(vectors), max(1, round(share * rows))
    found, limit = prune_to_share(vectors, cells, 0.95, share, 1)
    assert len(found.kept) == min(wanted, len(brute(vectors, 0.95)))
    assert limit <= 0.95


@pytest.mark.parametrize("share", [0.3, 0.45])
def test_a_share_brings_no_two_back_that_the_limit_forbids(share):
    """Near copies of one row are far from the keeper of a low limit, and alike among themselves."""
    random = np.random.default_rng(3)
    first = random.normal(size=(150, 12))
    copies = first + 0.01 * random.normal(size=first.shape)
    vectors = np.concatenate([first, copies]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found, _ = prune_to_share(vectors, one_cell(vectors), 0.95, share, 1)
    kept = vectors[found.kept]
    assert len(kept) == round(share * len(vectors))
    assert np.triu(kept @ kept.T, 1).max() <= 0.95


def test_clusters_depend_on_seed_and_rows_alone():
    vectors = clustered(600)
    assert (kmeans(vectors, 12, 5, 1) == kmeans(vectors, 12, 5, 1)).all()
    assert not np.allclose(kmeans(vectors, 12, 5, 1), kmeans(vectors, 12, 6, 1))
    assert np.allclose(np.linalg.norm(kmeans(vectors, 12, 5, 1), axis=1), 1, atol=1e-5)
    assert [cell_count(n) for n in (1, 4096, 10_000)] == [1, 1, 100]


def test_the_nearest_other_row_is_exact():
    vectors = clustered(700, 3)
    others = np.arange(0, 700, 2)
    place, cosine = nearest_other(vectors, np.arange(700), others, 2)
    every = vectors @ vectors[others].T
    every[np.arange(700)[:, None] == others[None, :]] = -2
    assert np.allclose(cosine, every.max(axis=1), atol=1e-5)
    assert (place == others[every.argmax(axis=1)]).mean() > 0.99
