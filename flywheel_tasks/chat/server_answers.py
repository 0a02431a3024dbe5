"""What a chat-completions server's answers mean for whoever asks: to ask again, and when, or to give one request up."""

import time
from email.utils import parsedate_to_datetime

import httpx

# By these a server refuses one request (too long, a filter) and says nothing of the others.
REFUSES_ONE = frozenset({400, 413, 422})
_AGAIN = frozenset({408, 409, 425, 429})  # and whatever is the server's fault
_LONGEST_WAIT = 120.0  # seconds that a server may ask for
_SHOWN = 200  # characters of a server's words


def asks_again(status: int) -> bool:
    """Whether a request that got this status may get another one later."""
    return status in _AGAIN or status >= 500


def asked_wait(answer: httpx.Response) -> float:
    """Seconds to wait by the header ``Retry-After`` (RFC 9110, 10.2.3), 120 at most; 0 where there is none.

    Args:
        answer: with the header as a number of seconds, or a date.
    """
    value = answer.headers.get("retry-after", "").strip()
    try:
        seconds = (
            float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return 0.0
    return min(_LONGEST_WAIT, max(0.0, seconds))


def said(answer: httpx.Response) -> str:
    """A server's words on one line, after a colon: the message of an error, else the body's beginning; never the key.

    Args:
        answer: to a request, whose bearer token is left out of what it echoes.
    """
    try:
        words = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        words = answer.text
    line = " ".join(str(words).split())
    token = answer.request.headers.get("authorization", "").removeprefix("Bearer ")
    if token:
        line = line.replace(token, "[key]")
    return f": {line[:_SHOWN]}" if line else ""
