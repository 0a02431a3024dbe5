import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from flywheel_tasks.report.approval import escape, render_approval
from flywheel_tasks.report.page import render_page
from tests.evaluation.handmade import estimate


@given(st.text(max_size=300))
def test_escaped_text_is_inert_and_comes_back(value: str) -> None:
    escaped = escape(value)
    assert "\n" not in escaped
    assert not re.search(r"[<>`*\[\]{}|\\~#@]", re.sub(r"&#\d+;", "", escaped))
    shown = unescape(escaped)
    # html.unescape maps a few code points of its own; all printable ASCII comes back
    assert re.sub(r"[^!-~]", "", shown) == re.sub(r"[^!-~]", "", " ".join(value.split()))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ 7*7 }}",
        "{% raw %}",
        "<script>",
        "[x](javascript:y)",
        "![](http://a)",
        "# h",
        "- x",
        "1. x",
        "| a |",
        "~~~",
        "www.a.b",
    ],
)
def test_attacks_become_references(attack: str) -> None:
    escaped = escape(attack)
    assert escaped != attack
    assert unescape(escaped) == attack
    assert Environment(autoescape=True).from_string(escaped).render() == escaped


def test_text_that_reorders_what_is_shown_is_removed() -> None:
    assert escape("ssap\u202e\u2066 to block\x07") == "ssap to block"


def test_long_text_is_cut() -> None:
    assert escape("a" * 1000) == "a" * 400 + "…"


def test_planted_markup_is_not_in_the_text(contents: Callable[..., Any]) -> None:
    text = render_approval(contents(planted=" <script>alert(1)</script> {{ 7*7 }} | **x**"))
    assert "<script" not in text
    assert "{{" not in text
    assert Environment(autoescape=True).from_string(text).render() + "\n" == text
    assert "alert(1)" in text


def test_verdict_reasons_figures_and_digests_are_there(contents: Callable[..., Any]) -> None:
    text = render_approval(contents(user=0.707, internal=0.437))
    assert text.startswith("# BLOCKED: generation g0001\n\n3 of 20 gate rules fail.")
    assert "**Simulated.** The annotators and the users of this generation are simulated" in text
    assert "| pointwise model | 70.7% (60.7–80.7, n = 30) | 43.7% (33.7–53.7, n = 30) |" in text
    assert "| instruction following | 31.0% (21.0–41.0, n = 60) | 44.0% (34.0–54.0, n = 60) |" in text
    assert "Share of replies (60 prompts of 9 users), with 95% interval." in text
    assert "- model: `sha256:1212" in text
    assert "- verdict: `sha256:efef" in text


def test_a_warning_is_told_and_still_asks(contents: Callable[..., Any]) -> None:
    text = render_approval(contents(false_refusal=0.15))
    assert text.startswith("# PASS WITH WARNINGS: generation g0001\n\nNo gate rule fails, 1 of 20 warns.")
    assert text.index("△") < text.index("✓")


def test_real_people_are_not_called_simulated(contents: Callable[..., Any]) -> None:
    assert "imulated" not in render_approval(contents(simulated={"users": False, "annotators": False}))
    assert "not recorded" in render_approval(contents(simulated={"users": None, "annotators": False}))


def test_what_was_not_run_is_said_to_the_approver(contents: Callable[..., Any]) -> None:
    shown = contents()
    evaluate = dict(shown.metrics["evaluate"]) | {"suites": {}}
    silent = replace(shown, metrics={**shown.metrics, "evaluate": evaluate})
    assert "the red-team suite was not run" in render_approval(silent)
    evaluate |= {"suites": {"red_team": {"value": 1.0}}, "refusal_detector": {"by": "rules"}}
    text = render_approval(replace(shown, metrics={**shown.metrics, "evaluate": evaluate}))
    assert "the red-team suite was not run" not in text
    assert "Refusals were told by rules alone" in text
    evaluate["refusal_detector"] = {"by": "model"}
    assert not replace(shown, metrics={**shown.metrics, "evaluate": evaluate}).not_measured()


def test_replies_without_a_judges_answer_are_told_in_both_texts(contents: Callable[..., Any]) -> None:
    shown = contents()
    why = "no answer to 40 of 60, counted as unsafe"
    unsafe = {side: estimate(0.7) | {"reason": why} for side in ("champion", "candidate")}
    production = shown.metrics["evaluate"]["production"] | {"safety_violation": unsafe}
    evaluate = shown.metrics["evaluate"] | {"production": production}
    silent = replace(shown, metrics={**shown.metrics, "evaluate": evaluate})
    assert f"as the judge sees them: {why}." in render_approval(silent)
    page = render_page(silent)
    assert f"60.0–80.0, n = 60, {why}</span>" in page
    assert f"as the judge sees them: {why}." in page
