import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss

from flywheel_tasks.chat.card import Card
from flywheel_tasks.rewards.agreement import agreement, alike, by_set, longer_is_better
from flywheel_tasks.rewards.calibration import brier, calibration_error, expected_calibration_error
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.rewards.surface import one_feature


def pair(chosen: str, rejected: str, number: int = 0) -> Pair:
    card = Card("c", "C", (), ())
    turns = ({"role": "user", "content": "Hi"},)
    return Pair(f"p{number}", f"q{number}", f"u{number % 7}", card, turns, chosen, rejected, "ranking")  # type: ignore[arg-type]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=40))
def test_the_brier_score_is_that_of_scikit_learn(margins: list[float]) -> None:
    found = brier(margins, list(range(len(margins))))
    ones = np.ones(len(margins), dtype=int)
    assert found["value"] == pytest.approx(
        brier_score_loss(ones, expit(np.array(margins)), pos_label=1), abs=1e-12
    )


def test_a_model_that_means_what_it_says_has_little_calibration_error_and_a_loud_one_has_much() -> None:
    random = np.random.default_rng(0)
    margins = random.normal(0, 1.5, 20_000)
    right = random.random(20_000) < expit(margins)
    honest = np.where(right, margins, -margins)  # logits of what was chosen
    users = list(range(20_000))
    rows = slice(0, 2000)
    assert expected_calibration_error(expit(np.abs(honest)), (honest > 0).astype(float)) < 0.02
    loud = calibration_error((4 * honest[rows]).tolist(), users[rows])
    assert loud["low"] is not None
    assert loud["low"] > 0.1
    assert calibration_error([], [])["value"] is None
    assert calibration_error([1.0], ["a"])["low"] is None


def test_the_interval_draws_whole_users() -> None:
    random = np.random.default_rng(1)
    margins = random.normal(0.3, 1, 200).tolist()
    apart = calibration_error(margins, list(range(200)))
    together = calibration_error(margins, [row // 40 for row in range(200)])
    assert (apart["clusters"], together["clusters"]) == (200, 5)
    assert apart["value"] == together["value"]


def test_pairs_that_differ_on_the_surface_are_told_from_those_that_do_not() -> None:
    assert alike(pair("one two three four", "four three two one five"))
    assert not alike(pair("one two", "one two three"))
    assert not alike(pair("one two three \N{SPARKLES}", "one two three four"))


@pytest.mark.parametrize(
    ("longer", "alike_one", "short"),
    [
        ("冬が来る前にもう一度海に出ましょう。", "冬が来る前にもう一度山に登りましょう。", "はい。"),
        ("冬天来之前我们再出一次海吧。", "冬天来之前我们再爬一次山吧。", "好。"),
        ("ก่อนฤดูหนาวเราออกทะเลกันอีกครั้ง", "ก่อนฤดูหนาวเราขึ้นภูเขากันอีกครั้ง", "ได้"),
    ],
    ids=["Japanese", "Chinese", "Thai"],
)
def test_where_no_spaces_part_words_length_is_in_characters(longer: str, alike_one: str, short: str) -> None:
    assert alike(pair(longer, alike_one))
    assert not alike(pair(longer, short))
    assert (longer_is_better(pair(longer, short)), longer_is_better(pair(short, longer))) == (1, 0)


def test_a_judge_of_length_is_shown_for_what_it_is() -> None:
    pairs = [pair("word " * (5 + n % 3), "word " * (4 + n % 2), n) for n in range(60)]
    by_length = [float(len(p.chosen.split()) - len(p.rejected.split())) for p in pairs]
    measured = agreement(pairs, by_length)
    assert measured["accuracy"] == measured["accuracy_by_length"]


def test_the_accuracy_on_replies_that_are_alike_is_of_those_pairs_alone() -> None:
    unlike = pair("one two", "one two three")
    another_emoji_count = pair("one two three \N{SPARKLES}", "one two three four")
    same = pair("one two three four", "four three two one five")
    pairs = [unlike, same, another_emoji_count, unlike, same, unlike]
    found = agreement(pairs, [1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    assert (found["accuracy_alike"]["n"], found["accuracy_alike"]["value"]) == (2, 0.0)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)


def test_without_several_reviews_there_is_no_accuracy_on_their_consensus_and_the_reason_is_told() -> None:
    """So that a gate's rule on it passes where it may be absent; a missing number would block."""
    alone = by_set([pair("Aye, a fine day.", "No.")], [0.3])["consensus"]["accuracy"]
    assert (alone["value"], alone["reason"]) == (None, "no held-out pair has several reviews that agree")


def test_the_best_single_feature_is_chosen_on_training_pairs_and_measured_on_others() -> None:
    learned = [pair(f"Aye {n}. And are you?", f"Aye {n}. So it is.", n) for n in range(20)]
    heldout = [
        pair("Why?", "No.", 1),
        pair("Who?", "No.", 2),
        pair("No.", "What?", 3),
        pair("No.", "Yes.", 4),
    ]
    found = one_feature(learned, heldout)
    assert (found["feature"], found["better"]) == ("ends with a question", "more")
    assert found["accuracy"]["value"] == (1 + 1 + 0 + 0.5) / 4
    fewer = one_feature([pair("Aye.", "Aye 🙂 🙂.", n) for n in range(9)], heldout)
    assert (fewer["better"], fewer["accuracy"]["value"]) == ("less", 0.5)
