"""Where sentences end, and where a reply that the token limit cut off can end decently."""

import re

# A mark ends a sentence before a space or the end of the text, so that neither "3.5" nor "e.g" has one; the wide marks
# of scripts without spaces do everywhere. A semicolon is a question mark after a Greek word (not after a formula's λ).
SPACED_ENDS = ".!?…؟۔।॥։።။។៕"
WIDE_ENDS = "。！？｡"
GREEK_QUESTION = r"(?<=[\u0370-\u03ff\u1f00-\u1fff]{2})[;\u037e]"
CLOSERS = r"[\"'”’)\]*」』）】]*"
# Full-width marks made plain (NFKC) stand before a wide letter without a space.
AFTER = r"\s|[\u3000-\u30ff\u3400-\u9fff]"
NEXT = rf"(?={AFTER}|$)"
# Of marks in a row the last decides, so one is enough: a row tried whole from each of its marks takes its square.
_END = re.compile(rf"(?:[{SPACED_ENDS}]|{GREEK_QUESTION}){CLOSERS}{NEXT}|[{WIDE_ENDS}]{CLOSERS}")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if not even one is whole.

    Args:
        text: a reply that stops anywhere.
    """
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
