"""Limits of words in instructions: any number, in digits or in words, and where words cannot be counted."""

from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.counts import _ONES, _TENS, Limit, digits, limit
from flywheel_tasks.evaluation.instructions import checks, instruction_checks, obeyed, share_kept


@given(limit=st.integers(1, 99), count=st.integers(1, 120))
def test_word_limits_hold_for_any_number(limit: int, count: int) -> None:
    (check,) = instruction_checks(f"Answer in at most {limit} words.")
    assert check.obeyed("word " * count) == (count <= limit)


def test_a_limit_of_words_is_not_measured_in_scripts_without_spaces() -> None:
    long = "これはとても長い文章であり単語が非常に多く含まれています。"
    card = Card("c", "Mae", (), ("At most 3 words.", "Never use emoji."))
    assert obeyed(checks(card), long) == [True]
    assert obeyed(checks(card), "One two three four.") == [False, True]
    assert share_kept(Card("c", "Mae", (), ("At most 3 words.",)), long) is None


def spelled(number: int) -> str:
    """A number below ten thousand in English words."""
    if number >= 1000:
        rest = f" {spelled(number % 1000)}" if number % 1000 else ""
        return f"{spelled(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" and {spelled(number % 100)}" if number % 100 else ""
        return f"{spelled(number // 100)} hundred{rest}"
    if number < 20:
        return _ONES[number]
    return list(_TENS)[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")


@given(st.integers(1, 9999))
def test_numbers_in_words_are_read_whole(number: int) -> None:
    assert limit(digits(f"at most {spelled(number)} words"), "words?") == Limit(high=number)
