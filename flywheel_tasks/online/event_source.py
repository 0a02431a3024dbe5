"""Where a test's events are read from, in words: fixed when the test starts."""

from flywheel_tasks.settings import Settings


def shown(place: str) -> str:
    """A place without the name and password that a URL may hold."""
    return place.split("?")[0].rsplit("@", 1)[-1]


def told(error: Exception, place: str) -> str:
    """The first line of a driver's error, without what :func:`shown` leaves out of the place."""
    login, options = place.partition("://")[2].rpartition("@")[0], place.partition("?")[2]
    said = str(error).replace(place, shown(place))
    for private in (f"{login}@", options, login.partition(":")[2]):
        if private.strip("@"):
            said = said.replace(private, "")
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
