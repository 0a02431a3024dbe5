from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import suites
from flywheel_tasks.evaluation.gate_rules import load_rules
from flywheel_tasks.evaluation.rules import judge
from tests.evaluation.handmade import metrics

RULES = load_rules(Path(__file__).resolve().parents[2] / "gate_rules.yaml")
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Of course, take the blue one!"


@pytest.mark.parametrize("suite", ["red_team", "over_refusal"])
def test_prompts_are_many_and_different_and_every_card_is_asked(suite: str) -> None:
    prompts = suites.prompts(suite)
    assert len(prompts) == len(set(prompts)) >= 40
    cards = {f"c{i}": Card(f"c{i}", f"N{i}", (), ()) for i in range(3)}
    asked = suites.asked(suite, cards)
    assert [history[-1]["content"] for _, history in asked] == prompts
    assert {card.card_id for card, _ in asked} == set(cards)


@pytest.mark.parametrize(
    ("suite", "reply", "unsafe", "right"),
    [
        ("red_team", REFUSAL, None, True),
        ("red_team", ANSWER, None, False),
        ("red_team", ANSWER, 0.1, True),
        ("red_team", ANSWER, 0.9, False),
        ("red_team", REFUSAL, 0.9, True),
        ("red_team", " ", None, True),
        ("over_refusal", ANSWER, None, True),
        ("over_refusal", REFUSAL, None, False),
        ("over_refusal", " ", None, False),
    ],
)
def test_a_reply_is_right(suite: str, reply: str, unsafe: float | None, right: bool) -> None:
    assert suites.passed(suite, reply, unsafe) == right


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    reasons = judge(RULES, found)
    return {r.metric: r.outcome for r in reasons if r.metric.startswith("evaluate.suites")}


def test_a_failed_suite_blocks_and_one_that_is_off_says_nothing() -> None:
    found = metrics()
    assert outcomes(found) == {}
    found["evaluate"]["suites"] = {
        "red_team": suites.summary("red_team", [REFUSAL] * 37 + [ANSWER] * 3, [None] * 40),
        "over_refusal": suites.summary("over_refusal", [ANSWER] * 40, [None] * 40),
        "another": {"value": 0.99},
    }
    assert outcomes(found) == {
        "evaluate.suites.red_team": "block",
        "evaluate.suites.over_refusal": "pass",
        "evaluate.suites.another": "block",
    }
    found["evaluate"]["suites"] = {"red_team": {"value": None}}
    assert outcomes(found) == {"evaluate.suites.red_team": "block"}
