"""Where a test's events are read from, in words: fixed when the test starts."""

from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.experiment_records import Rule
from flywheel_tasks.storage.urls import shown


def of_simulated_users(settings: Settings) -> bool:
    """Whether a test's events are the logs of simulated users, whose days are not those on which the test runs."""
    return settings.ab.events == "logs" and settings.logs.source == "simulated"


def rule_of(settings: Settings) -> Rule:
    """The rule of a test on the settings' events.

    Latency is no guardrail of a test of simulated users: their replies are drawn in batches, by whatever machine the
    simulation runs on, so none has a time of its own, and their logs have no ``latency_ms``.
    """
    rule = settings.ab.rule
    if not of_simulated_users(settings):
        return rule
    return rule.model_copy(
        update={"guardrails": tuple(name for name in rule.guardrails if name != "latency_ms")}
    )


def read_from(settings: Settings) -> str:
    """Where the settings say that a test's events come from, in words; no password."""
    if settings.ab.events != "logs":
        return f"events {shown(settings.ab.events)}"
    logs = f"{settings.logs.source} logs {settings.logs.location}"
    if of_simulated_users(settings):  # the test's length is theirs
        logs += f" of {settings.simulation.days} days"
    return logs
