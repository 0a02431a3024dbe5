import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.policy.sentences import whole_sentences


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("I see. And then we", "I see."),
        ('She said "go!" And', 'She said "go!"'),
        ("It was 3.5 miles and", ""),
        ("Really?! *waves.* Then I", "Really?! *waves.*"),
        ("All done.", "All done."),
        ("", ""),
        ("これはペンです。次に", "これはペンです。"),
        ("「はい。」それから", "「はい。」"),
        ("元気？はい、今日", "元気？"),
        ("यह है। वह", "यह है।"),
        ("كيف حالك؟ ثم", "كيف حالك؟"),
        ("Τι κάνεις; Και", "Τι κάνεις;"),
        ("A wave. It has λ; then", "A wave."),
        ("Bread; and", ""),
    ],
)
def test_examples(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


@given(st.text(alphabet="ab .!?\n", max_size=40))
def test_a_prefix_that_ends_well_and_stays(text: str) -> None:
    found = whole_sentences(text)
    assert text.strip().startswith(found)
    assert not found or found[-1] in ".!?"
    assert whole_sentences(found) == found


def test_a_long_row_of_marks_is_read_in_one_go() -> None:
    began = time.process_time()
    assert whole_sentences("Oh!" + " " + "!" * 200_000 + "x") == "Oh!"
    assert time.process_time() - began < 10.0  # milliseconds; if each mark read the rest of the row, minutes
