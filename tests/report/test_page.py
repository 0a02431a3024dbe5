from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.report.contents import Curve
from flywheel_tasks.report.page import render_page
from tests.pages import parsed

VOID = frozenset({"meta", "polyline", "wbr"})
PLANTED = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</div></main><iframe srcdoc='<script>parent.document.title=1</script>'></iframe>{{ 7*7 }}"
)


def test_the_page_is_one_file_with_the_verdict_first(contents: Callable[..., Any]) -> None:
    page = render_page(contents(user=0.707, internal=0.437))
    tags = parsed(page, VOID)
    assert tags.links == ["../data/validated/contracts.html"]
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("BLOCKED") < page.index("Win rates") < page.index("What was removed")
    assert "not below 65%: a sign of overfitting" in page.replace("<wbr>", "")
    assert "simulated: the figures say nothing of real people" in page
    assert tags.seen.count("article") == 10
    assert "prefers-color-scheme: dark" in page


def test_a_warning_is_neither_a_pass_nor_a_block(contents: Callable[..., Any]) -> None:
    page = render_page(contents(false_refusal=0.15))
    assert '<header class="warn">' in page
    assert "PASS WITH WARNINGS" in page
    assert page.count('<li class="warn">') == 1


@pytest.mark.parametrize(("by", "told"), [("model", "the trained detector"), ("rules", "rules alone")])
def test_the_page_says_who_told_refusals_and_which_rules_look_at_intervals(
    contents: Callable[..., Any], by: str, told: str
) -> None:
    found = contents()
    found.metrics["evaluate"]["refusal_detector"] = {"by": by}
    page = render_page(found)
    assert f"refusals by {told};" in page
    assert "a gap of user and internal win rates does not block where its interval includes zero" in page
    assert (
        "a change from the champion and the comparison with the earlier reward model warn only where" in page
    )


def test_figures_reach_the_page(contents: Callable[..., Any]) -> None:
    page = render_page(contents())
    for text in (
        '60.0%</b> <span class="note">50.0–70.0, n = 30',
        "62.0%",
        "not json",
        "2,345",
        "length ratio",
    ):
        assert text in page
    assert (
        "0.11 before RL, 0.35 after; gain 0.24 (95% interval 0.14–0.34, n = 40), flattered a little" in page
    )
    assert "+13.0 points" in page
    assert "one feature alone (ends with a question: more is better), 58.0%." in page
    assert "move it towards the reply that keeps them in 55.0% (45.0% to 65.0%) of 40 cases" in page
    assert "Pointwise: card reading" not in page  # the accuracy bars are of people's preferences
    assert "-2.0 to +28.0" in page
    assert "PASS" in page
    assert 'polyline points="0.00,3.00 50.00,50.00 100.00,97.00"' in page
    assert "learned 210 pairs of this generation, and of earlier ones 90 of 200 of g0007." in page


def test_a_chart_begins_where_its_curve_does(contents: Callable[..., Any]) -> None:
    checks = Curve("rl_checks", [0.0, 4.0], {"reward": [0.1, 0.3]})
    page = render_page(replace(contents(), curves=[checks]))
    assert "<span>step 0 to 4</span>" in page
    assert "step 1 to" not in page


def test_shares_are_of_replies_and_say_of_how_many_prompts(contents: Callable[..., Any]) -> None:
    full = contents()
    page = render_page(full)
    assert "to the champion's to the same prompt (60 prompts of 9 users), with" in page
    assert "Share of evaluation prompts" not in page
    evaluate = {name: value for name, value in full.metrics["evaluate"].items() if name != "prompts"}
    page = render_page(replace(full, metrics={**full.metrics, "evaluate": evaluate}))
    assert "to the champion's to the same prompt, with" in page


def test_who_reads_the_instructions_that_code_cannot_check(contents: Callable[..., Any]) -> None:
    full = contents()
    told = "Code checks 38 of 40 instructions of the evaluated cards; "
    assert told + "the others count neither as obeyed nor as broken." in render_page(full)
    evaluate = full.metrics["evaluate"] | {"judge": "some-model"}
    page = render_page(replace(full, metrics={**full.metrics, "evaluate": evaluate}))
    assert told + "the judge is asked about the others." in page
    assert "neither as obeyed" not in page


def test_planted_markup_stays_text(contents: Callable[..., Any]) -> None:
    tags = parsed(render_page(contents(planted=PLANTED)), VOID)
    assert not {"script", "iframe", "img"} & set(tags.seen)
    assert tags.seen == parsed(render_page(contents()), VOID).seen


def test_missing_metrics_are_said_and_nothing_breaks(contents: Callable[..., Any]) -> None:
    full = contents()
    page = render_page(type(full)(**{**full.__dict__, "metrics": {}, "replies": [], "curves": []}))
    parsed(page, VOID)
    assert "not measured" in page
    assert "No accuracy was measured" in page


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_in_a_browser(
    browser: Any, contents: Callable[..., Any], tmp_path: Path, scheme: Any, width: int
) -> None:
    path = tmp_path / "report.html"
    # Without the page's own policy, so that the escaping alone is tested.
    page = render_page(contents(planted=PLANTED))
    policy = page[page.index("<meta http-equiv") : page.index("<title>")]
    path.write_text(page.replace(policy, ""), encoding="utf-8")
    with browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as view:
        requests: list[str] = []
        view.on("request", lambda request: requests.append(request.url))
        view.goto(path.as_uri())
        assert view.title() == "Pass: generation g0001"
        assert view.locator("script, iframe, img").count() == 0
        assert requests == [path.as_uri()]
        assert "<script>document.title" in view.locator(".reply").first.inner_text()
        assert view.evaluate("document.documentElement.scrollWidth") <= width
