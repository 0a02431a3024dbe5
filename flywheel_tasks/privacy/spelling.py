"""How identifiers are written to be missed: separators between digits, ``(at)`` and ``[dot]``; and one form for all."""

import re

GAP = r"[ .\-_/*\u00b7\u2022]{0,3}"
_OPEN, _CLOSE = r"[(\[{<]\s*", r"\s*[)\]}>]"
AT = rf"(?:\s{{0,2}}@\s{{0,2}}|\s*{_OPEN}(?:at|@){_CLOSE}\s*)"
DOT = rf"(?:\.|\s+\.\s+|\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
SAID_DOT = rf"(?:\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
IP_DOT = rf"(?:\s{{0,2}}\.\s{{0,2}}|\s*{_OPEN}(?:dot|\.){_CLOSE}\s*|\s+dot\s+)"
NOT_DIGITS = re.compile(r"\D")
SEPARATORS = re.compile(r"[\s.\-_/*\u00b7\u2022]")


def canonical(kind: str, text: str) -> str:
    """One form for all spellings of an identifier.

    Args:
        kind: its type.
        text: as found in folded text.
    """
    if kind in ("PHONE", "CARD"):
        return NOT_DIGITS.sub("", text)
    if kind == "EMAIL":
        plain = re.sub(SAID_DOT, ".", text, flags=re.IGNORECASE)
        plain = re.sub(rf"{AT}|\s+at\s+", "@", plain, flags=re.IGNORECASE)
        return re.sub(r"\s", "", plain).lower()
    if kind == "IP":
        return re.sub(r"\s", "", re.sub(IP_DOT, ".", text, flags=re.IGNORECASE)).lower()
    if kind in ("IBAN", "NATIONAL_ID"):
        return SEPARATORS.sub("", text).upper()
    return " ".join(text.split()).lower() if kind in ("NAME", "ADDRESS") else text.strip()
