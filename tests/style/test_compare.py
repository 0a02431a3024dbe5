import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from flywheel_tasks.style.compare import compare, holm
from flywheel_tasks.style.features import FEATURES, feature

HISTORY = [{"role": "user", "content": "How are you today?"}]


@pytest.mark.parametrize(
    ("name", "reply", "value"),
    [
        ("words", "I am fine.", 3),
        ("emoji", "Hi 🙂🙂", 2),
        ("list", "- a\n- b", 1),
        ("exclamation", "Yes! Yes!", 2),
        ("question", "And you?", 1),
        ("i_feel", "Today I feel fine.", 1),
        ("opens_with_i", "I'm fine.", 1),
        ("opens_with_i", "It is fine.", 0),
        ("interjection", "Ahh, well.", 1),
        ("action", "*waves* Hello", 1),
        ("action", "**bold** Hello", 0),
        ("capitals", "That is GREAT", 1),
        ("ellipsis", "Hm...", 1),
        ("line_breaks", "a\nb\n", 1),
        ("echo", "Today you sing", 2 / 3),
        ("sentences", "One. Two.", 2),
        ("exclamation", "你好！！", 2),
        ("question", "你好吗？", 1),
        ("question", "مرحبا؟", 1),
        ("questions", "你好吗？好吗？", 2),
        ("questions", "Really?? And you?", 2),
    ],
)
def test_features(name: str, reply: str, value: float) -> None:
    assert FEATURES[name].measure(HISTORY, reply) == pytest.approx(value)


def test_a_feature_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="words exists already"):
        feature("words", "count", "words")(lambda history, reply: 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 14])
def test_holm_is_statsmodels(count: int) -> None:
    rng = np.random.default_rng(count)
    for scale in (1.0, 0.1, 0.01):
        p_values = list(np.round(rng.random(count) * scale, 2))  # rounded, so that some are equal
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_holm_refuses_what_is_no_probability() -> None:
    assert holm([]) == []
    for bad in (float("nan"), 1.1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, bad])


def rows(before: list[int], after: list[int]) -> list[tuple[list, str, str]]:
    return [(HISTORY, "word " * a + ".", "word " * b + ".") for a, b in zip(before, after, strict=True)]


def test_a_change_is_found_and_what_is_equal_is_not() -> None:
    before, after = [20] * 12, [12, 13, 11, 12, 14, 12, 10, 12, 13, 12, 11, 12]
    found = {item.feature: item for item in compare(rows(before, after), list(range(12)), seed=1)}
    words = found["words"]
    assert (words.before, words.after) == (20, np.mean(after))
    difference = np.array(after) - np.array(before)
    assert words.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert words.p_value == pytest.approx(2 / 2**12)  # all signs equal, of all 2^12 flips
    assert words.flagged
    assert (found["emoji"].p_value, found["emoji"].flagged) == (1.0, False)
    assert list(found) == list(FEATURES)


def test_small_sets_are_tested_over_every_flip() -> None:
    before, after = [5, 5, 5, 5, 5, 5], [6, 7, 4, 9, 8, 6]
    found = {item.feature: item for item in compare(rows(before, after), list("abcdef"), seed=1)}
    expected = stats.permutation_test(
        (np.array(after) - np.array(before),), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert found["words"].p_value == pytest.approx(expected)


def test_many_prompts_of_few_users_prove_little() -> None:
    by_prompt = {i.feature: i for i in compare(rows([20] * 20, [15] * 20), list(range(20)), seed=1)}
    by_user = {i.feature: i for i in compare(rows([20] * 20, [15] * 20), ["a", "b"] * 10, seed=1)}
    assert by_prompt["words"].p_value < 0.001
    assert by_user["words"].p_value >= 0.5
    assert by_prompt["words"].effect is None  # no spread


def test_no_rows_and_one_user() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        compare([], [], seed=1)
    found = compare(rows([5, 5], [6, 6]), ["a", "a"], seed=1)
    assert found[0].p_value is None
    assert not found[0].flagged
