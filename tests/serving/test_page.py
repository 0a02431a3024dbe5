"""The chat page in a real browser, before a real gateway."""

from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.serving.page import PAGE_POLICY, chat_page
from tests.pages import chromium
from tests.serving.conftest import CARDS, Live, logged, wait_for, write_cards
from tests.serving.stub import REPLY, Stub

PLANTED = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def test_the_page_is_one_file_that_may_run_nothing_else() -> None:
    page, tags = chat_page(), Tags()
    tags.feed(page)
    assert set(tags.links) == {"#say", "data:,"}
    assert tags.handlers == []
    assert "innerHTML" not in page
    assert "http" not in page
    policy = PAGE_POLICY["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not {"simulated", "demo"} & set(page.lower().split())


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def enter(gateway: Live, view: Any) -> None:
    view.goto(gateway.served.url)
    view.get_by_role("textbox", name="API key").fill(gateway.keys["ann"])
    view.keyboard.press("Enter")
    view.get_by_role("textbox", name="Message").wait_for()


def say(view: Any, text: str) -> None:
    view.get_by_role("textbox", name="Message").fill(text)
    view.keyboard.press("Enter")
    view.locator("#go", has_text="Send").wait_for()


@pytest.mark.slow
def test_a_chat_in_a_browser(live: Callable[..., Live], root: Path, stub: Stub, browser: Any) -> None:
    planted = {**CARDS[1], "name": f"Tomas {PLANTED}"}
    write_cards(root, [CARDS[0], planted])
    gateway = live()
    view = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    errors: list[str] = []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    requests: list[str] = []
    view.on("request", lambda request: requests.append(request.url))

    view.goto(gateway.served.url)
    view.get_by_role("textbox", name="API key").fill("fw-00000000-wrong")
    view.keyboard.press("Enter")
    view.get_by_text("This key is not valid.").wait_for()
    assert [text for text in errors if "401" not in text] == []
    errors.clear()
    enter(gateway, view)
    assert view.evaluate("document.activeElement.id") == "say"
    assert view.locator("#character option").all_inner_texts() == ["Mira", f"Tomas {PLANTED}"]

    say(view, "Is it stormy?")
    assert view.locator(".message .text").all_inner_texts() == ["Is it stormy?", REPLY]
    view.get_by_role("button", name="Good reply").click()
    view.get_by_text("Thank you").wait_for()
    assert view.get_by_role("button", name="Good reply").get_attribute("aria-pressed") == "true"
    stub.replies["base"] = PLANTED
    view.get_by_role("button", name="Another reply").click()
    view.locator(".assistant .text", has_text="onerror").wait_for()
    view.locator("#go", has_text="Send").wait_for()
    assert view.locator(".message .text").all_inner_texts() == ["Is it stormy?", PLANTED]
    say(view, PLANTED)
    assert view.locator("#log img, #log script").count() == 0
    assert view.title() == "Mira"
    view.get_by_role("combobox", name="Character").select_option(label=f"Tomas {PLANTED}")
    say(view, "Hello")
    assert view.title() == f"Tomas {PLANTED}"
    assert errors == []
    assert {url.removeprefix(gateway.served.url) for url in requests if not url.startswith("data:")} <= {
        *("/", "/v1/models", "/v1/chat/completions", "/v1/feedback")
    }
    assert [row["signal"] for row in logged(root, "signal")] == ["thumb_up", "regenerate"]
    assert [row["text"] for row in logged(root, "message") if row["role"] == "user"] == [
        *("Is it stormy?", PLANTED, "Hello")
    ]


@pytest.mark.slow
def test_a_character_greets(make_live: Callable[..., Live], stub: Stub, browser: Any) -> None:
    gateway = make_live(cards=[{**CARDS[0], "greeting": PLANTED}, CARDS[1]], **{"upstream.greetings": True})
    view = browser.new_page()
    enter(gateway, view)
    texts = view.locator(".message .text")
    assert texts.all_inner_texts() == [PLANTED]
    assert view.locator("#log img, #log script").count() == 0
    assert view.get_by_role("button", name="Good reply").count() == 0, "nobody rates a greeting"
    stub.modes["base"] = "error"
    say(view, "Hello")
    view.get_by_text("No model answers now.").wait_for()
    assert texts.all_inner_texts() == [PLANTED]
    stub.modes.clear()
    for text in ("Hello", "And now?"):
        say(view, text)
    assert texts.all_inner_texts() == [PLANTED, "Hello", REPLY, "And now?", REPLY]
    view.get_by_role("combobox", name="Character").select_option(label="Tomas")
    view.get_by_text("Say something to begin.").wait_for()
    assert texts.count() == 0

    view.get_by_role("combobox", name="Character").select_option(label="Mira")
    write_cards(gateway.gateway.root, [{**CARDS[0], "greeting": "Come in!"}, CARDS[1]])
    wait_for(lambda: gateway.characters()[0]["greeting"] == "Come in!")
    say(view, "Hi")
    view.get_by_text("This character greets otherwise now.").wait_for()
    view.get_by_role("button", name="New chat").click()
    view.locator(".message .text", has_text="Come in!").wait_for()
    say(view, "Hi")
    assert texts.all_inner_texts() == ["Come in!", "Hi", REPLY]


@pytest.mark.slow
def test_stopping_failing_and_going_on(
    live: Callable[..., Live], root: Path, stub: Stub, browser: Any
) -> None:
    gateway = live()
    view = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
    enter(gateway, view)
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
    stub.modes["base"] = "error"
    say(view, "Hello")
    view.get_by_text("No model answers now.").wait_for()
    assert view.get_by_role("textbox", name="Message").input_value() == "Hello"
    assert view.locator(".message").count() == 0
    stub.modes.clear()
    stub.replies["base"] = "One. Two. Three. Four. Five. Six."
    stub.pace = 0.6
    view.keyboard.press("Enter")
    view.locator(".assistant .text", has_text="Two.").wait_for()
    view.get_by_role("button", name="Stop").click()
    view.get_by_text("Stopped", exact=True).wait_for()
    stub.pace = 0.0
    say(view, "Go on")
    assert view.locator(".message").count() == 4
    assert view.get_by_role("button", name="Another reply").count() == 1
    stub.modes["base"] = "error"
    say(view, "More")
    view.get_by_text("No model answers now.").wait_for()
    assert view.get_by_role("button", name="Another reply").count() == 1
    assert len({row["conversation_id"] for row in logged(root, "message")}) == 1
    view.get_by_role("button", name="Switch between dark and light").click()
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
    assert view.evaluate("document.documentElement.scrollWidth") <= 360
