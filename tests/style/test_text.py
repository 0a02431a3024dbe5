import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.style import text


def test_words_and_sentences() -> None:
    assert text.words("Don’t go—it's a well-known trap!") == [
        "don't",
        "go",
        "it's",
        "a",
        "well-known",
        "trap",
    ]
    assert text.sentences('He said "Stop!" Then... he left.\nQuiet') == 4
    assert text.sentences("?!") == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("- a\n- b", True),
        ("1) a\n2) b", True),
        ("Try 1. tea 2. sleep", True),
        ("- a", False),
        ("It is 1. Or 3.", False),
    ],
)
def test_lists(value: str, expected: bool) -> None:
    assert text.has_list(value) == expected


@pytest.mark.parametrize("whole", ["Done.", "Really?” 🙂", "Bye 👋", "*waves*", '"Go!"', "Well…", "(Ha!)"])
def test_whole_replies(whole: str) -> None:
    assert not text.cut_off(whole)


@pytest.mark.parametrize("cut", ["I went to the", "Then he said,", "", "Bread, milk and *very"])
def test_cut_replies(cut: str) -> None:
    assert text.cut_off(cut)


@given(st.text(max_size=100))
def test_any_text_has_a_count(value: str) -> None:
    assert text.sentences(value) <= max(1, len(value))
    assert len(text.ending(value)) <= len(value)
