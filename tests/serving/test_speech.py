"""Replies in parts: whole sentences of any script, found without looking at a text again and again."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_tasks.serving import speech as module
from flywheel_tasks.serving.speech import Speech, finished

TEXTS = st.text(alphabet="ab .!?…\"')\n3éαβ;日。！」।", max_size=60)


@settings(max_examples=300)
@given(TEXTS, st.lists(st.integers(1, 7), min_size=1, max_size=30), st.sampled_from(["stop", "length"]))
def test_what_is_shown_in_parts_is_the_whole(text: str, sizes: list[int], finish: str) -> None:
    speech, parts, place = Speech(), [], 0
    for size in sizes * 60:
        if place >= len(text):
            break
        upto = speech.add(text[place : place + size])
        place += size
        assert upto.startswith(speech.shown)
        parts.append(speech.show(upto))
    parts.append(speech.show(speech.end(finish)))
    assert "".join(parts) == speech.shown == finished(text, finish)
    assert all(speech.shown.startswith(state) for state in speech.states())


def test_sentences_come_whole() -> None:
    speech = Speech()
    shown = [
        speech.show(speech.add(piece)) for piece in (" I have ", "3.5 lamps", ". They", ' burn."', " And")
    ]
    assert shown == ["", "", "I have 3.5 lamps.", "", ' They burn."']
    assert speech.show(speech.end("length")) == ""
    assert Speech().end("stop") == ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("海が静かです。「はい！」光をつけました。", ["海が静かです。", "「はい！」", "光をつけました。"]),
        ("元気？？はい。", ["元気？？", "はい。"]),
        ("समुद्र शांत है। आप कहाँ से हैं?", ["समुद्र शांत है।", " आप कहाँ से हैं?"]),
        ("كيف حالك؟ أنا بخير.", ["كيف حالك؟", " أنا بخير."]),
        ("Τι κάνεις; Καλά.", ["Τι κάνεις;", " Καλά."]),
    ],
)
def test_sentences_of_other_scripts_come_one_by_one(text: str, parts: list[str]) -> None:
    speech = Speech()
    shown = [speech.show(speech.add(letter)) for letter in text]
    shown.append(speech.show(speech.end("stop")))
    assert [part for part in shown if part] == parts


@pytest.mark.parametrize("mark", ["!", "...", "!!!!!!!!", ")", "。", "a"])
def test_a_reply_of_marks_is_looked_at_once(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    class Counting:
        def finditer(self, text: str, start: int) -> object:
            looked_at.append(len(text) - start)
            return module_end.finditer(text, start)

    module_end = module._END
    monkeypatch.setattr(module, "_END", Counting())
    speech, pieces = Speech(), 20_000 // len(mark)
    began = time.process_time()
    for _ in range(pieces):
        assert speech.add(mark) == ""
    assert sum(looked_at) <= len(mark) * pieces + 16 * pieces
    assert speech.end("length") == mark * pieces
    assert time.process_time() - began < 20.0  # it takes less than one; what takes the square of it, hours
