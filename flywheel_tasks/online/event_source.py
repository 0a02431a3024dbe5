"""Where a test's events are read from, in words: fixed when the test starts."""

import re
from urllib.parse import unquote, unquote_plus

from flywheel_tasks.settings import Settings


def shown(place: str) -> str:
    """A place without the name and password that a URL may hold."""
    return place.split("?")[0].rsplit("@", 1)[-1]


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
        place: as ``ab.events`` has it.
    """
    said = str(error).replace(place, shown(place))
    for private in _private(place):
        said = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", "***", said)
    return said.strip().partition("\n")[0]


def of_simulated_users(settings: Settings) -> bool:
    """Whether a test's events are the logs of simulated users, whose days are not those on which the test runs."""
    return settings.ab.events == "logs" and settings.logs.source == "simulated"


def read_from(settings: Settings) -> str:
    """Where the settings say that a test's events come from, in words; no password."""
    if settings.ab.events != "logs":
        return f"events {shown(settings.ab.events)}"
    logs = f"{settings.logs.source} logs {settings.logs.location}"
    if of_simulated_users(settings):  # the test's length is theirs
        logs += f" of {settings.simulation.days} days"
    return logs
