"""Whose logs a generation was opened with, real users' or simulated ones': that stays, and a registry has one kind.

Later generations learn from the pairs of launched ones, and are measured against their reward models and their data:
what simulated users liked must not teach what real ones get.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.pipeline.generation_ids import GenerationError
from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.fast_yaml import load_yaml
from flywheel_tasks.storage.registry import Registry
from flywheel_tasks.storage.simulated import MARKER
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


def refuse_mixing(root: Path, registry: Registry, generation: str, settings: Settings) -> None:
    """Refuse to open a generation of real users where simulated ones' logs lie or were launched, and the reverse.

    A generation that was never launched leaves nothing to later ones, so one of either kind may stand there.

    Args:
        root: the workspace.
        registry: the workspace's.
        generation: that is to be opened.
        settings: that it is to be opened with.

    Raises:
        GenerationError: ``logs.location`` is a folder of simulated logs, or another generation was launched on logs of
            the other kind.
    """
    logs, experiments = settings.logs, registry.state().experiments
    if logs.source == "files" and "://" not in logs.location and (root / logs.location / MARKER).exists():
        raise GenerationError(
            f"logs.source is files, but {logs.location} (logs.location) holds simulated traffic ({MARKER}): real logs "
            "need another folder"
        )
    for other in sorted({experiment.plan.generation for experiment in experiments.values()}):
        kept = registry.find_generation(other, BUNDLE)
        if kept is not None and (source := logs_of(orjson.loads(kept))["source"]) != logs.source:
            raise GenerationError(
                f"{generation} would be of logs.source {logs.source}, but {other}, launched from the registry "
                f"{shown(settings.registry.location)}, is of {source}: it would learn from that one's pairs, and real "
                "users and simulated ones do not mix. Use a clean clone, or another registry.location"
            )
