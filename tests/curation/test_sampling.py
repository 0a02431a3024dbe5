from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.curation.sampling import largest_remainder, quotas, stratified
from tests.curation.rows import prompt


def test_largest_remainder_of_a_known_case():
    # Hamilton's method on the textbook votes 47, 16, 15.8, 12, 6.1, 3.1 thousand for ten seats.
    votes = {"y": 47000, "w": 16000, "r": 15800, "g": 12000, "b": 6100, "p": 3100}
    assert largest_remainder(votes, 10) == {"y": 5, "w": 2, "r": 1, "g": 1, "b": 1, "p": 0}


@given(
    st.dictionaries(st.text(max_size=3), st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 200)
)
def test_shares_add_up_and_are_within_one_of_the_exact_ones(weights, total):
    shares = largest_remainder(weights, total)
    assert sum(shares.values()) == total
    whole = sum(weights.values())
    assert all(abs(shares[key] - total * weight / whole) < 1 + 1e-6 for key, weight in weights.items())


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 120)
)
def test_quotas_never_ask_for_more_than_there_is(strata, total):
    target = {key: wanted for key, (wanted, _) in enumerate(strata)}
    available = {key: there for key, (_, there) in enumerate(strata)}
    taken = quotas(target, available, total)
    assert sum(taken.values()) == min(total, sum(available.values()))
    assert all(0 <= taken[key] <= available[key] for key in available)


def test_a_short_stratum_is_made_up_for_by_the_others():
    assert quotas({"a": 50, "b": 30, "c": 20}, {"a": 2, "b": 50, "c": 50}, 10) == {"a": 2, "b": 5, "c": 3}


def rows(count):
    return [
        prompt(f"p{k}", user=f"u{k % 7}", source="internal" if k % 4 == 0 else "user") for k in range(count)
    ]


def test_a_stratified_sample_keeps_the_mix_and_does_not_depend_on_the_order():
    table = rows(80)
    target = Counter(row["source"] for row in table)
    chosen = stratified(table, lambda row: row["source"], target, 20, 1, "x")
    assert Counter(row["source"] for row in table if row["prompt_id"] in chosen) == {
        "internal": 5,
        "user": 15,
    }
    assert stratified(table[::-1], lambda row: row["source"], target, 20, 1, "x") == chosen
    assert stratified(table, lambda row: row["source"], target, 20, 2, "x") != chosen
