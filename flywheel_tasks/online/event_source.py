"""Where a test's events are read from, in words: fixed when the test starts."""

from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.urls import shown


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
