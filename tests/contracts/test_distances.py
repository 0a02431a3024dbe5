import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from flywheel_tasks.contracts.distances import categories, distance

SMALL = st.lists(st.integers(0, 40), min_size=1, max_size=40)  # up to 64 a sketch is exact
NAMES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1)


def lengths(values: list[int]) -> dict:
    sizes, counts = np.unique(values, return_counts=True)
    return {
        "of": "lengths",
        "rows": len(values),
        "counts": [[int(s), int(c)] for s, c in zip(sizes, counts, strict=True)],
    }


def shares(counts: dict, other: int = 0) -> dict:
    return {"of": "categories", "rows": sum(counts.values()) + other, "counts": counts, "other": other}


@given(SMALL, SMALL)
def test_distances_of_lengths_are_those_of_the_samples(a, b):
    now, before = lengths(a), lengths(b)
    assert distance("kolmogorov_smirnov", now, before) == pytest.approx(
        stats.ks_2samp(a, b, method="asymp").statistic
    )
    assert distance("wasserstein", now, before) == pytest.approx(stats.wasserstein_distance(a, b))


@given(NAMES, NAMES)
def test_distances_of_categories_are_those_of_their_shares(a, b):
    p = np.array([a.get(name, 0) for name in "abcdef"], float)
    q = np.array([b.get(name, 0) for name in "abcdef"], float)
    found = distance("jensen_shannon", shares(a), shares(b))
    assert found == pytest.approx(np.nan_to_num(jensenshannon(p, q, base=2)), abs=1e-7)
    p, q = np.maximum(p / p.sum(), 1e-4), np.maximum(q / q.sum(), 1e-4)
    assert distance("population_stability", shares(a), shares(b)) == pytest.approx(
        np.sum((p - q) * np.log(p / q)), abs=1e-9
    )


@pytest.mark.parametrize("kind", ["jensen_shannon", "population_stability"])
def test_a_distribution_has_no_distance_from_itself(kind):
    assert distance(kind, shares({"a": 3, "b": 5}), shares({"a": 30, "b": 50})) == pytest.approx(0, abs=1e-9)


def test_categories_that_only_a_whole_list_names_are_counted_as_other():
    """Two lists that were cut at different places are compared on what both name."""
    names, mine, its = categories(shares({"a": 5, "b": 4}, other=1), shares({"a": 5, "c": 4}, other=1))
    assert names == ["a", "other"]
    assert mine.tolist() == its.tolist() == [0.5, 0.5]
    names, mine, its = categories(shares({"a": 5, "b": 5}), shares({"a": 5, "c": 5}))
    assert names == ["a", "b", "c", "other"]
    assert mine.tolist() == [0.5, 0.5, 0, 0]
