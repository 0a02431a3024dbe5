"""Data that a generation starts from: the newest logs, the profile and the splits of earlier launched generations."""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from flywheel_tasks.pipeline.generation_ids import before
from flywheel_tasks.settings import Settings
from flywheel_tasks.storage.registry import PROFILE, SPLIT, Registry, evidence_name
from flywheel_tasks.traffic.logs import pin_logs

_log = logging.getLogger(__name__)

NO_PROFILE: dict[str, Any] = {"generation": None, "profile": None}
_STYLES = 24  # generations that a report shows
NO_SPLITS: dict[str, Any] = {"earlier": []}


def pinned_logs(settings: Settings, root: Path, earlier: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The logs of the newest days, and of all days since the last generation's.

    They are pinned where they are, or extracted from a warehouse first.

    Args:
        settings: of the workspace.
        root: the workspace.
        earlier: what earlier generations pinned, the newest first.
    """
    logs = settings.logs
    # Simulated weeks are of any date, and each is there as a whole.
    today = datetime.now(UTC).date() if logs.source == "files" else None
    if logs.in_a_warehouse:
        from flywheel_tasks.traffic.warehouse import extract

        pinned = extract(
            logs.location,
            logs.warehouse,
            logs.newest_days,
            settings.ingest.rename,
            root,
            today,
            earlier,
            logs.late_days,
        )
    else:
        pinned = pin_logs(
            logs.location,
            root,
            newest_days=logs.newest_days,
            today=today,
            earlier=earlier if logs.source == "files" else (),
            late_days=logs.late_days,
        )
        if pinned["unread"]:
            _log.warning(
                "%s: no generation reads the logs of %d days, %s to %s: this one begins with %s (logs.late_days)",
                logs.location,
                len(pinned["unread"]),
                pinned["unread"][0],
                pinned["unread"][-1],
                pinned["since"],
            )
    return pinned if logs.earlier == "auto" else {**pinned, "earlier": logs.earlier == "always"}


def accepted_profile(registry: Registry, generation: str) -> dict[str, Any]:
    """The data profile of the newest earlier generation that was launched.

    Args:
        registry: keeps the profile of each launched generation.
        generation: that is opened.

    Returns:
        ``generation`` and ``profile``; both None before the first launch.
    """
    for item in before(registry, generation):
        if (kept := registry.find_generation(item, PROFILE)) is not None:
            return {"generation": item, "profile": orjson.loads(kept)}
    return NO_PROFILE


def launched_styles(registry: Registry, generation: str) -> list[dict[str, Any]]:
    """How the replies of earlier launched generations were made, for the report's charts.

    Args:
        registry: keeps the metrics of each launched generation.
        generation: before which.

    Returns:
        the oldest first, each with ``generation`` and ``features``: of each style feature the mean over the replies
        of its champion and of its candidate, to its own evaluation prompts.
    """
    state, found = registry.state(), []
    for name in reversed(before(registry, generation)[:_STYLES]):
        tested = state.tested(name)
        digest = tested.plan.verdict_digest if tested is not None else None
        kept = registry.find_generation(name, evidence_name(digest)) if digest else None
        style = orjson.loads(kept)["metrics"].get("style") if kept is not None else None
        features = ((style or {}).get("comparisons") or {}).get("generation", {}).get("features")
        if features:
            means = {name: [row["before"], row["after"]] for name, row in sorted(features.items())}
            found.append({"generation": name, "features": means})
    return found


def launched_splits(registry: Registry, generation: str) -> dict[str, Any]:
    """Salt, shares and evaluation prompts of every earlier generation that was launched.

    Args:
        registry: keeps the record of each launched generation.
        generation: before which.

    Returns:
        ``earlier``: a list, the oldest first, each with ``generation``, ``salt``, ``shares`` and ``evaluated``.
    """
    earlier = reversed(before(registry, generation))
    kept = ((item, registry.find_generation(item, SPLIT)) for item in earlier)
    return {
        "earlier": [{"generation": item, **orjson.loads(data)} for item, data in kept if data is not None]
    }
