"""Long texts: what is found does not depend on where a window is cut, and the work grows with the text."""

import random
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.privacy.outgoing import identifiers_in, without_identifiers
from flywheel_tasks.privacy.windows import CONTEXT, OVERLAP, SIZE, windows
from tests.privacy.test_prefilters import IDENTIFIERS

WORDS = ("well", "so", "I", "went", "there", "again", "and", "nobody", "was", "home", "but", "the", "cat")


def words(length, seed):
    """Chat of some length without identifiers; it ends with a space."""
    draw = random.Random(seed)
    text = ""
    while len(text) < length:
        text += draw.choice(WORDS) + " "
    return text[: length - 1].strip().ljust(length - 1, "x") + " "


@settings(max_examples=60)
@given(st.integers(0, 5 * SIZE), st.sampled_from(["a", "a ", "some words\n", "é"]))
def test_windows_are_bounded_and_share_a_part(length, unit):
    text = (unit * length)[:length]
    found = list(windows(text))
    assert all(0 <= one.end - one.start <= SIZE for one in found)
    assert (found[0].start, found[0].seen, found[-1].end, found[-1].next) == (0, 0, length, length)
    for one, following in pairwise(found):
        assert (following.start, following.seen) == (one.next, one.end)
        assert one.end - following.start >= OVERLAP
        assert following.start > one.start
    assert len(found) <= 1 + length / (SIZE - OVERLAP - 2 * CONTEXT)


@pytest.mark.parametrize("text", [text for text in IDENTIFIERS if "BEGIN" not in text])
def test_an_identifier_over_a_cut_is_found_as_in_a_short_text(detector, text):
    alone = [(hit.type, hit.value) for hit in detector.find(f"ok {text} ok")]
    cuts = [edge for one in windows(words(3 * SIZE, 1)) for edge in (one.start, one.end)]
    for number, cut in enumerate(cuts[1:4]):
        for before in (0, 1, len(text) // 2, len(text), len(text) + 1):
            start = cut - before
            long = words(start, number) + text + " " + words(SIZE, number)
            hits = detector.find(long)
            assert [(hit.type, hit.value) for hit in hits] == alone
            assert all(start <= hit.start < hit.end <= start + len(text) for hit in hits)


@pytest.mark.parametrize("said", ["version 1.2.3.4", "order 212555", "it cost 1,000,000 dollars"])
def test_a_cut_does_not_make_an_identifier(detector, said):
    cuts = [edge for one in windows(words(3 * SIZE, 1)) for edge in (one.start, one.end)]
    for cut in cuts[1:4]:
        for before in range(0, len(said) + 2, 3):
            text = words(cut - before, 2) + said + " and " + words(SIZE, 2)
            assert detector.find(text) == []


def test_keys_and_links_that_are_longer_than_a_window_are_found_whole(detector):
    key = (
        "-----BEGIN RSA PRIVATE KEY-----\n"
        + "MIICXAIBAAKBgQC7VJTUt9Us8cKj\n" * 300
        + "-----END RSA PRIVATE KEY-----"
    )
    link, secret = (
        "https://www.example.org/" + "ab/" * SIZE,
        "https://x.example.org/?" + "a=b&" * SIZE + "token=abcdefgh",
    )
    for kind, long in (("SECRET", key), ("URL", link), ("URL_SECRET", secret)):
        text = words(SIZE - 30, 3) + long + " or\n" + words(SIZE, 4)
        assert [(hit.type, text[hit.start : hit.end].strip()) for hit in detector.find(text)] == [
            (kind, long)
        ]


def test_no_recogniser_compares_the_findings_of_a_long_text(detector, monkeypatch):
    seen = []
    for one in detector._recognisers:
        if one not in detector._endless:
            monkeypatch.setattr(one, "analyze", lambda text, *_: seen.append(len(text)) or [])
    detector.find("12 34 56 78 90 " * 4000)
    assert seen
    assert max(seen) <= SIZE


# Each once cost the square of its length, or more.
SLOW = {
    "numbers": "12 34 5 67 89 10 2 ",
    "dashes": "-",
    "hosts": "a.bc/",
    "labels": "a@" + "a." * 50,
    "key names": "bearer-",
    "tokens": "eyJ-",
    "passwords": "https://" + "a:" * 50,
    "links": "http://",
    "hexadecimal": "deadbeef",
    "accents": "\u0300\u0316",
    "addresses": "ab@example.com ",
}


@pytest.mark.parametrize("name", SLOW)
def test_the_work_grows_with_the_text(detector, name):
    def seconds(look, length):
        unit = SLOW[name]
        text = "a@" + (unit * (length // len(unit) + 1))[:length] + "! 123456"
        start = process_time()
        look(text)
        return process_time() - start

    def cleaned(text):
        return without_identifiers(text, [], lambda kind, words: "[X]")

    for look in (detector.find, identifiers_in, cleaned):
        # Eight times the text: about 8 times the work, and 64 times if it grew with the square.
        assert seconds(look, 16000) < 30 * max(seconds(look, 2000), 0.01)
