from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.contracts.page import number, plain, render_page, share
from flywheel_tasks.contracts.validation import Validated
from tests.pages import parsed

PLANTED = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"
LENGTHS = {"of": "lengths", "rows": 3, "counts": [[1, 1], [40, 2]]}
KINDS = {"of": "categories", "rows": 3, "counts": {PLANTED: 2, "b": 1}, "other": 0}


def validated(result: str = "warn") -> Validated:
    row_rules = [
        {"rule": "known_source", "kind": "x", "set_aside": 7, "note": "", "why": PLANTED},
        {"rule": "other", "kind": "x", "set_aside": 0, "note": "", "why": "-"},
    ]
    table_rules = [
        {
            "rule": f"rule_{status}",
            "severity": "warn",
            "status": status,
            "measure": "Number of rows",
            "observed": None if status == "not_applicable" else 0.25,
            "allowed": "at most 0.2",
            "note": "not applicable: first generation" if status == "not_applicable" else "",
            "why": PLANTED,
        }
        for status in ("pass", "warn", "not_applicable", *(["block"] if result == "block" else []))
    ]
    of = {
        "description": "-",
        "read": 1010,
        "kept": 1003,
        "row_rules": row_rules,
        "table_rules": table_rules,
    }
    example = {
        "table": "messages",
        "event_id": "e1",
        "file": "date=2026-11-02/part.jsonl",
        "line": 12,
        "rule": "known_source",
        "detail": f"source is '{PLANTED}' \u202ereversed " + "long " * 200,
    }
    return Validated(
        {"result": result, "tables": {"messages": of}},
        {"format": 1, "tables": {"messages": {"rows": 1003, "distributions": {"l": LENGTHS, "k": KINDS}}}},
        [example],
    )


def test_the_page_has_the_result_first_then_tables_rules_and_examples():
    page = render_page(validated("block"), broken_lines=3, problems=["5.6% of all rows are set aside"])
    tags = parsed(page)
    assert tags.links == ["#messages"]
    assert "http:" not in page
    assert "https:" not in page
    order = [
        "BLOCKED",
        "5.6% of all rows",
        "rule_block",
        "rule_warn",
        "<h2>Tables",
        "known_source",
        "jsonl:12",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "1,003 kept" in page
    assert "and 6 more in quarantine.parquet" in page
    assert "not applicable: first generation" in page


def test_text_of_logs_and_contracts_stays_text():
    page = render_page(validated())
    tags = parsed(page)
    assert not {"script", "img", "iframe"} & set(tags.seen)
    assert "{{ 7*7 }}" in page
    assert "\u202e" not in page
    assert "long " * 60 not in page


def test_without_an_earlier_generation_there_is_one_curve_and_a_sentence():
    page = render_page(validated())
    assert page.count("<polyline") == 1
    assert "There is no earlier accepted generation" in page
    reference: dict[str, Any] = {"tables": {"messages": {"distributions": {"l": LENGTHS, "k": KINDS}}}}
    page = render_page(validated(), reference=reference, compared_with="g0001")
    assert page.count("<polyline") == 2
    assert "compared with g0001" in page


def test_numbers_for_people():
    assert [number(x) for x in (None, 3.0, 12345, 0.12345, 1e-6, 0.0)] == [
        "–", "3", "12,345", "0.123", "under 0.001", "0",
    ]  # fmt: skip
    assert [share(*x) for x in ((0, 5), (1, 4), (1, 1_000_000), (0, 0))] == [
        "0%", "25.00%", "under 0.01%", "0%",
    ]  # fmt: skip
    assert plain("a\n b\x00") == "a b\N{REPLACEMENT CHARACTER}"


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_in_a_browser(browser: Any, tmp_path: Path, scheme: Any, width: int) -> None:
    path = tmp_path / "contracts.html"
    page = render_page(validated())
    policy = page[page.index("<meta http-equiv") : page.index("<title>")]
    path.write_text(page.replace(policy, ""), encoding="utf-8")  # so that the escaping alone is tested
    with browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as view:
        requests: list[str] = []
        view.on("request", lambda request: requests.append(request.url))
        view.goto(path.as_uri())
        assert view.title() == "Warnings: Data contracts"
        assert requests == [path.as_uri()]
        assert view.locator("script, img").count() == 0
        assert "<script>document.title" in view.locator(".rows").first.inner_text()
        assert view.evaluate("document.documentElement.scrollWidth") <= width
