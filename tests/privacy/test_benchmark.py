"""The benchmark's set, smaller: what must not get worse."""

from benchmarks.privacy import measure, ours
from benchmarks.privacy_sentences import character_names, sentences


def test_recall_precision_and_false_alarms_hold():
    result = measure(sentences(per_type=24, clean=240, seed=7), ours())
    for (kind, disguised), recall in result.recall.items():
        assert recall >= (0.7 if disguised else 0.95), (kind, disguised, recall)
    assert all(precision >= 0.95 for precision in result.precision.values()), result.precision
    assert result.alarms <= 0.01


def test_names_of_characters_are_nobodys(detector):
    assert [name for name in character_names() if detector.find(f"{name}: hi {name}! 😀")] == []
