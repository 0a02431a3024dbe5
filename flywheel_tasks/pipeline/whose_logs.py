"""Whose logs a generation was opened with, real users' or simulated ones': that stays."""

from collections.abc import Mapping
from typing import Any

import orjson

from flywheel_tasks.pipeline.generation_ids import GenerationError
from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.urls import shown

BUNDLE = "inputs.json"  # what a generation was opened with, in the registry


def bundle_of(registry: Registry, generation: str) -> dict[str, Any]:
    """What a generation was opened with.

    Raises:
        RegistryError: nobody opened it.
    """
    found: dict[str, Any] = orjson.loads(registry.get_generation(generation, BUNDLE))
    return found


def logs_of(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``logs`` of the settings that a generation was opened with."""
    return dict(load_yaml(bundle["params"])["logs"])


def refuse_other_logs(generation: str, bundle: Mapping[str, Any], settings: Settings) -> None:
    """Refuse to go on with a generation by settings that name other logs: it would go on with its own.

    Args:
        generation: its id.
        bundle: what it was opened with.
        settings: of now.

    Raises:
        GenerationError: ``logs.source`` or ``logs.location`` is another.
    """
    opened = logs_of(bundle)
    for name, now in (("source", settings.logs.source), ("location", settings.logs.location)):
        if (was := opened[name]) != now:
            raise GenerationError(
                f"{generation} was opened with logs.{name} {shown(was)}, and params.yaml says {shown(now)}: it can go "
                f"on with its own logs only. Set logs.{name} back, or leave {generation} as it is and open another "
                "one: flywheel generation next"
            )
