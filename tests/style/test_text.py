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
    "value",
    [
        "नमस्ते दोस्त, आज मौसम बहुत अच्छा है और मैं समुद्र के किनारे टहल रही हूँ।",
        "வணக்கம் நண்பரே எப்படி இருக்கிறீர்கள்",
        "مَرْحَبًا بِكَ يَا صَدِيقِي العَزِيز",
        "שָׁלוֹם לְךָ חָבֵר",
        "می\u200cخواهم بروم",
        "안녕하세요 친구 오늘 날씨가 좋아요",
    ],
)
def test_marks_and_joiners_part_no_word(value: str) -> None:
    assert len(text.words(value)) == len(value.split())


def test_signs_of_emoji_are_no_part_of_a_word() -> None:
    assert text.words("1️⃣ first, 🙂️ then") == ["1", "first", "then"]


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


@pytest.mark.parametrize(
    "whole",
    [
        *("Done.", "Really?” 🙂", "Bye 👋", "*waves*", '"Go!"', "Well…", "(Ha!)"),
        *(
            "これはペンです。",
            "「はい。」",
            "元気ですか？",
            "यह अच्छा है।",
            "هل أنت بخير؟",
            "یہ اچھا ہے۔",
            "Τι κάνεις;",
            "สวัสดีครับ",
        ),
    ],
)
def test_whole_replies(whole: str) -> None:
    assert not text.cut_off(whole)


@pytest.mark.parametrize(
    "cut", ["I went to the", "Then he said,", "", "Bread, milk and *very", "これはペン", "यह अच्छा", "Bread;"]
)
def test_cut_replies(cut: str) -> None:
    assert text.cut_off(cut)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("これはペンです。はい。そうです。", 3),
        ("元気?はい!今日は3.5度です。", 3),
        ("यह है। वह है।", 2),
        ("كيف حالك؟ أنا بخير.", 2),
        ("Τι κάνεις; Καλά.", 2),
        ("The wave has λ; then we measure.", 1),
        ("Bread; milk; tea.", 1),
    ],
)
def test_sentences_of_other_scripts(value: str, count: int) -> None:
    assert text.sentences(value) == count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("We open at 9 a.m. and close at 5 p.m. today.", 1),
        ("We open at 9 a.m. Come by!", 2),
        ("I lived in the U.S. for years.", 1),
        ("I lived in the U.S. It was long ago.", 2),
        ("He sailed for the U.S. Navy (in the U.S.) for years.", 1),
        ("My friend J. R. Smith says hi.", 1),
        ("J. A. Smith and J.R. Ewing say hi.", 1),
        ("Meet me at No. 5, by the pier.", 1),
        ("Oh no. we are late.", 2),
        ("No. We are late.", 2),
        ("She is 5 ft. 3 in. tall, approx. 63 inches.", 1),
        ("Come in. we are late.", 2),
        ("Eggs, milk, etc. 5 of each.", 1),
        ("I am I. You are you.", 2),
        ("So do I. Tom does too.", 2),
        ("Plan B. It works.", 2),
        ("Plan B. Tom knows it.", 1),
        ("Bake at 175°C. Stir it well.", 2),
        ("That is Luna's. Tom left. WAS IT TOM'S? NO.", 4),
        ("A. B. C. D.", 4),
        ("I am Mr. T.", 1),
    ],
)
def test_initials_and_dotted_abbreviations_end_no_sentence(value: str, count: int) -> None:
    assert text.sentences(value) == count


def test_words_of_scripts_without_spaces_are_unclear() -> None:
    assert text.words_unclear("これはペンです。")
    assert text.words_unclear("สวัสดีครับ")
    assert not text.words_unclear("They call it 茶, tea, in that part of the world.")
    assert not text.words_unclear("यह अच्छा है। كيف حالك؟ Привет. 안녕 하세요")


def test_lengths_are_in_words_or_where_these_are_unclear_in_characters() -> None:
    assert text.lengths("one two", " three ") == (2, 1, "words")
    assert text.lengths("これは ペンです。", "はい。") == (8, 3, "characters")
    assert text.lengths("ได้", "Of course.") == (3, 9, "characters")


@given(st.text(max_size=100))
def test_any_text_has_a_count(value: str) -> None:
    assert text.sentences(value) <= max(1, len(value))
    assert len(text.ending(value)) <= len(value)
