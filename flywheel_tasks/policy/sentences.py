"""Where a reply that the token limit cut off can end decently."""

import re

# An end mark, closing quotes or brackets after it, then a space or the end; "3.5" and "e.g" do not match.
_END = re.compile(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if not even one is whole.

    Args:
        text: a reply that stops anywhere.
    """
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
