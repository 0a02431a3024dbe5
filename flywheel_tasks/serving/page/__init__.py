"""The chat page: one file, nothing loaded from elsewhere, and a policy that lets nothing else run."""

import base64
import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_HTML, _CSS, _JS = (
    (_HERE / name).read_text(encoding="utf-8") for name in ("chat.html", "chat.css", "chat.js")
)


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE_POLICY = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_source(_JS)}; style-src {_source(_CSS)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def chat_page() -> str:
    """The page, with its style and script inside."""
    return _HTML.replace("<!--style-->", f"<style>{_CSS}</style>").replace(
        "<!--script-->", f"<script>{_JS}</script>"
    )
