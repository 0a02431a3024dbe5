"""What tests of self-contained pages share: a parser that checks nesting, and a real browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


class Tags(HTMLParser):
    """Tags that are seen, links, and whether they nest.

    Args:
        void: tags that need no end.
    """

    def __init__(self, void: frozenset[str]) -> None:
        super().__init__()
        self.void = void
        self.seen: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def parsed(page: str, void: frozenset[str] = frozenset({"meta"})) -> Tags:
    """The tags of a page, all of which are closed but those of ``void``."""
    tags = Tags(void)
    tags.feed(page)
    assert tags.open == []
    return tags


@contextmanager
def chromium() -> Iterator[Any]:
    """A started browser, or a skip that says why."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_OPTIONS)
        yield browser
        browser.close()
