from collections import Counter

import pytest

from flywheel_tasks.annotation.pairs import Preferences, add_ranking_pairs, add_rewrites, run, surface_reason
from flywheel_tasks.annotation.tasks import AnnotationError
from flywheel_tasks.settings import Annotate, Annotators, Consensus, GoldItems
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.tables import read_rows
from tests.annotation.tasks_of_tests import label, task


def limits(**changes):
    return Annotate(
        **{
            "max_length_ratio": 2.0,
            "max_emoji_difference": 1,
            "drop_both_refusals": True,
            "pairs_per_prompt": 2,
            "rewrites": True,
            "consensus": Consensus(min_reviews=3, min_agreement=0.66),
            "annotators": Annotators(
                min_items=5,
                min_agreement=0.6,
                gold=GoldItems(min_items=5, min_accuracy=0.7),
                exclude_flagged=False,
            ),
            **changes,
        }
    )


LIMITS = limits()


def ranked(of, labels, settings=LIMITS):
    found = Preferences()
    add_ranking_pairs(of, labels, settings, found)
    return found


def test_surface_filters():
    assert surface_reason("a b", "a b c d", LIMITS) is None
    assert surface_reason("a b", "a b c d e", LIMITS) == ("length_ratio", "5 to 2 words")
    assert surface_reason("もう一度海に出る。", "はい。", LIMITS) == ("length_ratio", "9 to 3 characters")
    assert surface_reason("海に出る。", "はい。", LIMITS) is None
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
    found = ranked(of, labels, limits(pairs_per_prompt=9))
    assert ("one a b", "two a b") not in {(pair["chosen"], pair["rejected"]) for pair in found.pairs}
    assert "no_majority" in {row["reason"] for row in found.removed}
    assert len(found.pairs) + len(found.removed) + found.spare == 3


def test_candidates_that_the_reviews_leave_equal_make_no_pair():
    of = task(texts=("one a b", "two a b"))
    found = ranked(of, [label(of, ((0, 1),))])
    assert (found.pairs, [row["reason"] for row in found.removed]) == ([], ["tie"])


def test_two_refusals_make_no_pair_unless_they_may():
    of = task(texts=("I cannot.", "I must not."))
    refusing = [label(of, refusals=(0, 1))]
    assert [row["reason"] for row in ranked(of, refusing).removed] == ["both_refuse"]
    assert len(ranked(of, refusing, limits(drop_both_refusals=False)).pairs) == 1
    assert len(ranked(of, [label(of, refusals=(1,))]).pairs) == 1


def test_pairs_say_how_good_they_are_and_who_wrote_them():
    of = task(texts=("one a b", "two a b"), purpose="reward_heldout", reviews=3)
    agreed = ranked(of, [label(of, (1, 0), f"a{k}") for k in range(3)]).pairs[0]
    split = ranked(of, [label(of, order, f"a{k}") for k, order in enumerate([(1, 0), (1, 0), (0, 1)])]).pairs[
        0
    ]
    single = ranked(of, [label(of, (1, 0))]).pairs[0]
    strict = limits(consensus=Consensus(min_reviews=3, min_agreement=0.9))
    assert (agreed["consensus"], split["consensus"], single["consensus"]) == (True, True, False)
    assert [agreed["reviews"], single["reviews"]] == [3, 1]
    assert (agreed["chosen_policy"], agreed["rejected_policy"]) == ("m1", "m0")
    three = [label(of, order, f"a{k}") for k, order in enumerate([(1, 0), (1, 0), (0, 1)])]
    assert not ranked(of, three, strict).pairs[0]["consensus"]


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


def workspace(make_io, root, tasks, labels, overrides=None):
    io = make_io("annotate", root, {"annotate.pairs_per_prompt": 2, **(overrides or {})})
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
    assert metrics["agreement"]["alpha_ordinal"]["value"] == pytest.approx(1.0)
    rate = metrics["candidates"]["violates_card"]["user"]
    assert (rate["value"], rate["n"]) == (3 / 8, 8)
    assert rate["low"] < rate["value"] < rate["high"]


def test_rewrites_can_be_left_out(make_io, tmp_path):
    of = task("t1")
    io = workspace(
        make_io, tmp_path, [of], [label(of, rewrite=(0, "better one"))], {"annotate.rewrites": False}
    )
    metrics = run(io)
    assert (metrics["pairs"]["reward_train"], metrics["rewrites"]) == ({"ranking": 2, "rewrite": 0}, 0)
    assert read_rows(io.out("data/preferences") / "rewrites.parquet") == []


def test_no_pair_at_all_is_an_error(make_io, tmp_path):
    of = task(texts=("x", "a reply that is much too long to be compared"))
    with pytest.raises(AnnotationError, match="no pair of 1 tasks"):
        run(workspace(make_io, tmp_path, [of], [label(of)]))


def test_a_rewrite_task_gives_a_rewrite_and_no_ranking(make_io, tmp_path):
    tasks = [task("t1", "policy", kind="rewrite", texts=("bad a b",)), task("t2", "policy")]
    labels = [label(tasks[0], rewrite=(0, "good a b"), faults=(0,)), label(tasks[1])]
    io = workspace(make_io, tmp_path, tasks, labels)
    metrics = run(io)
    assert metrics["pairs"]["policy"] == {"ranking": 2, "rewrite": 1}
    assert metrics["candidates"]["violates_card"]["user"]["n"] == 4  # the bad reply was chosen for being bad
    rewritten = read_rows(io.out("data/preferences") / "rewrites.parquet")
    assert [(row["rejected"], row["rewrite"], row["reviews"]) for row in rewritten] == [
        ("bad a b", "good a b", 1)
    ]


def careless_panel(good=4, tasks=40):
    """Everyone but a0 ranks alike; a0 ranks the other way round."""
    made = [task(f"t{k}", "reward_heldout", reviews=good + 1) for k in range(tasks)]
    labels = [
        label(of, (3, 2, 1, 0) if name == 0 else (0, 1, 2, 3), f"a{name}")
        for of in made
        for name in range(good + 1)
    ]
    return made, labels


@pytest.mark.parametrize("exclude", [False, True])
def test_an_annotator_who_disagrees_is_flagged_and_can_be_left_out(make_io, tmp_path, exclude):
    tasks, labels = careless_panel()
    io = workspace(make_io, tmp_path, tasks, labels, {"annotate.annotators.exclude_flagged": exclude})
    metrics = run(io)
    rows = {row["annotator"]: row for row in read_rows(io.out("data/preferences") / "annotators.parquet")}
    assert [name for name, row in rows.items() if row["flagged"]] == ["a0"]
    assert rows["a0"]["agreement"] == 0.0
    assert rows["a1"]["agreement"] == 1.0
    assert rows["a0"]["decisions"] == 240
    assert metrics["annotators"] == {"all": 5, "flagged": 1, "flagged_by": {"agreement": 1, "gold": 0}}
    assert metrics["labels"] == {"used": 160 if exclude else 200, "excluded_flagged": 40 if exclude else 0}
    assert (metrics["agreement"]["alpha_ordinal"]["value"] == pytest.approx(1.0)) == exclude
    pairs = read_rows(io.out("data/preferences") / "pairs.parquet")
    assert {pair["agreement"] for pair in pairs} == ({1.0} if exclude else {0.8})
    assert metrics["consensus_pairs"]["reward_heldout"] == len(pairs) == 80


def test_few_shared_decisions_flag_nobody(make_io, tmp_path):
    tasks, labels = careless_panel(tasks=3)
    metrics = run(workspace(make_io, tmp_path, tasks, labels, {"annotate.annotators.min_items": 20}))
    assert metrics["annotators"]["flagged"] == 0
