"""Where a test's events are read from, in words: fixed when the test starts."""

from flywheel_tasks.settings import Settings


def shown(place: str) -> str:
    """A place without the name and password that a URL may hold."""
    return place.split("?")[0].rsplit("@", 1)[-1]


def read_from(settings: Settings) -> str:
    """Where the settings say that a test's events come from, in words; no password."""
    if settings.ab.events != "logs":
        return f"events {shown(settings.ab.events)}"
    logs = f"{settings.logs.source} logs {settings.logs.location}"
    if settings.logs.source == "simulated":  # the test's length is theirs
        logs += f" of {settings.simulation.days} days"
    return logs
