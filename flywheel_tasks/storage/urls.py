"""What may be said of a place: URLs of databases hold names and passwords."""

import os
import re
from urllib.parse import unquote, unquote_plus


def shown(place: str) -> str:
    """A place without the name, password and options that a URL may hold."""
    return place.split("?")[0].rsplit("@", 1)[-1]


def filled_in(url: str) -> str:
    """A URL with the variables of the environment that it names (``${PGPASSWORD}``): no secret need stand in a file."""
    return os.path.expandvars(url)


def _private(place: str) -> list[str]:
    """What nobody may see of a place, as it stands there and decoded, the longest first."""
    url, _, options = place.partition("?")
    login = url.partition("://")[2].rpartition("@")[0]
    values = [login.partition(":")[2], *(option.partition("=")[2] for option in options.split("&"))]
    found = {form for value in values for form in (value, unquote(value), unquote_plus(value)) if form}
    return sorted(found, key=len, reverse=True)


def told(error: Exception, place: str) -> str:
    """The first line of a driver's error, without what :func:`shown` leaves out of the place.

    A password, and the value of an option, is replaced by ``***`` where it stands alone: a short one may be a part of
    any word.

    Args:
        error: the driver's.
        place: a URL, as the driver got it.
    """
    said = str(error).replace(place, shown(place))
    for private in _private(place):
        said = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", "***", said)
    return said.strip().partition("\n")[0]
