"""Community benchmarks: what is made of lm-eval's samples, and a clear word where it is not installed."""

from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.evaluation import community
from flywheel_tasks.evaluation.community import BenchmarkError, by_question, compared, run_benchmarks
from flywheel_tasks.settings import Compute


def sample(doc: int, correct: float, **more: Any) -> dict[str, Any]:
    return {
        "doc_id": doc,
        "filter": "none",
        "metrics": ["acc", "bleu"],
        "acc": correct,
        "bleu": ("a", "b"),
    } | more


def test_samples_become_numbers_by_question_and_a_corpus_score_is_left_out() -> None:
    rows = [sample(0, 1.0), sample(1, 0.0), sample(1, 1.0, filter="strict")]
    assert by_question({"arc": rows}) == {"arc": {"acc": {0: 1.0, 1: 0.0}, "acc (strict)": {1: 1.0}}}


def test_the_difference_is_paired_by_question() -> None:
    champion = {"arc": {"acc": {i: float(i % 2) for i in range(40)}}}
    candidate = {"arc": {"acc": {i: float(i % 2 or i % 8 == 0) for i in range(40)}}}
    row = compared(candidate, champion)["arc"]["acc"]
    assert row["difference"]["value"] == pytest.approx(5 / 40)
    assert row["difference"]["low"] is not None
    assert row["difference"]["low"] > 0
    assert row["candidate"]["low"] < row["champion"]["high"], "apart, their intervals overlap"  # type: ignore[operator]
    assert set(compared(candidate, None)["arc"]["acc"]) == {"candidate"}
    del champion["arc"]["acc"][3]
    with pytest.raises(BenchmarkError, match="arc: the two models were asked different questions"):
        compared(candidate, champion)


def test_without_lm_eval_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(community, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"pip install .characterflywheel\[lm-eval\]"):
        run_benchmarks(tmp_path, None, ["arc_easy"], compute=Compute(precision="float32", threads=1))
