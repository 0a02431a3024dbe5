from collections import Counter

import pytest

from flywheel_tasks.annotation.pairs import Preferences, add_ranking_pairs, add_rewrites, run, surface_reason
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.settings import Annotate
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.tables import read_rows
from tests.annotation.tasks_of_tests import label, task

LIMITS = Annotate(max_length_ratio=2.0, max_emoji_difference=1, pairs_per_prompt=2)


def ranked(of, labels, settings=LIMITS):
    found = Preferences()
    add_ranking_pairs(of, labels, settings, found)
    return found


def test_surface_filters():
    assert surface_reason("a b", "a b c d", LIMITS) is None
    assert surface_reason("a b", "a b c d e", LIMITS) == ("length_ratio", "5 to 2 words")
    assert surface_reason("a 😀", "b b", LIMITS) is None
    assert surface_reason("a 😀😀", "b b", LIMITS) == ("emoji_difference", "2 to 0 emoji")


def test_the_widest_pairs_are_chosen_first():
    found = ranked(task(), [label(task(), (2, 0, 3, 1))])
    assert [(pair["chosen"], pair["rejected"]) for pair in found.pairs] == [
        ("three a b", "two a b"),  # first against last
        ("three a b", "four a b"),
    ]
    assert all(pair["agreement"] == 1.0 for pair in found.pairs)


def test_a_filtered_pair_is_recorded_and_the_next_one_tried():
    of = task(texts=("best a b", "good a b", "x", "last one is far too long a reply to be compared with it"))
    found = ranked(of, [label(of)])
    assert [(pair["chosen"], pair["rejected"]) for pair in found.pairs] == [("best a b", "good a b")]
    assert len(found.pairs) + len(found.removed) == 6
    assert Counter(row["reason"] for row in found.removed) == {"length_ratio": 5}


def test_consensus_of_several_reviews_decides_and_ties_make_no_pair():
    of = task(texts=("one a b", "two a b", "three a b"))
    labels = [
        label(of, order, f"a{k}") for k, order in enumerate([(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 2, 1)])
    ]
    found = ranked(of, labels)
    assert {(pair["chosen"], pair["rejected"]) for pair in found.pairs} == {
        ("one a b", "three a b"),
        ("one a b", "two a b"),
    }
    assert {pair["agreement"] for pair in found.pairs} == {1.0, 0.75}


def test_a_pair_without_a_majority_is_removed():
    # c0 has the better mean rank than c1 though half of the reviews prefer c1.
    of = task(texts=("one a b", "two a b", "three a b"))
    labels = [label(of, (0, 2, 1), "a1"), label(of, (1, 0, 2), "a2")]
    found = ranked(of, labels, Annotate(max_length_ratio=2.0, max_emoji_difference=1, pairs_per_prompt=9))
    assert ("one a b", "two a b") not in {(pair["chosen"], pair["rejected"]) for pair in found.pairs}
    assert "no_majority" in {row["reason"] for row in found.removed}


def test_a_rewrite_beats_its_original_and_the_same_rewrite_counts_once():
    of, found = task(), Preferences()
    labels = [
        label(
            of,
            annotator="a1",
            rewrite=(0, "a far better reply that is much longer than what it replaces"),
            faults=(0,),
        ),
        label(
            of, annotator="a2", rewrite=(0, "a far better reply that is much longer than what it replaces")
        ),
        label(of, annotator="a3", rewrite=(1, "another")),
    ]
    add_rewrites(of, labels, found)
    assert [(pair["kind"], pair["rejected"]) for pair in found.pairs] == [
        ("rewrite", "one a b"),
        ("rewrite", "two a b"),
    ]
    assert [pair["agreement"] for pair in found.pairs] == pytest.approx([1 / 3, 0.0])
    assert [row["rewrite"] for row in found.rewrites] == [pair["chosen"] for pair in found.pairs]


def workspace(make_io, root, tasks, labels):
    io = make_io("annotate", root, {"annotate.pairs_per_prompt": 2})
    write_jsonl(tasks, root / "data/annotation/batch.jsonl")
    write_jsonl(labels, root / "data/annotation/labels.jsonl")
    return io


def test_tables_and_metrics(make_io, tmp_path):
    tasks = [task("t1"), task("t2", "reward_heldout", user="u2"), task("t3", "policy", user="u3")]
    labels = [
        label(tasks[0], rewrite=(0, "better one"), faults=(0, 1)),
        *[label(tasks[1], annotator=f"a{k}", faults=(0,)) for k in range(3)],
    ]
    io = workspace(make_io, tmp_path, tasks, labels)
    metrics = run(io)
    folder = io.out("data/preferences")
    pairs, rewrites = read_rows(folder / "pairs.parquet"), read_rows(folder / "rewrites.parquet")
    assert len({pair["pair_id"] for pair in pairs}) == len(pairs) == metrics["pairs_total"] == 5
    assert metrics["pairs"]["reward_train"] == {"ranking": 2, "rewrite": 1}
    assert metrics["pairs"]["policy"] == {"ranking": 0, "rewrite": 0}  # nobody labelled it
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert pairs[0]["history"] == tasks[0]["history"]
    assert (pairs[0]["card_name"], pairs[0]["traits"]) == ("Mae", ["dry"])
    assert [row["rewrite"] for row in rewrites] == ["better one"]
    assert read_rows(folder / "removed.parquet") == []
    assert metrics["agreement"]["alpha_ordinal"] == pytest.approx(1.0)
    rate = metrics["champion"]["violates_card"]["user"]
    assert (rate["value"], rate["n"]) == (3 / 8, 8)
    assert rate["low"] < rate["value"] < rate["high"]


def test_no_pair_at_all_is_an_error(make_io, tmp_path):
    of = task(texts=("x", "a reply that is much too long to be compared"))
    with pytest.raises(AnnotationError, match="no pair of 1 tasks"):
        run(workspace(make_io, tmp_path, [of], [label(of)]))
