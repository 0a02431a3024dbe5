"""Records of a campaign's generations that are over, and which of them count as launches."""

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_tasks.campaign.folder import Folder
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json


def records(folder: Folder) -> list[dict[str, Any]]:
    """Records of the generations that are over, in their order."""
    return [read_json(path) for path in sorted((folder.results / "generations").glob("g*.json"))]


def is_launch(record: Mapping[str, Any]) -> bool:
    """Whether a generation counts as a launch; the over-optimised one never does, though the gate let it pass."""
    return bool(record["status"] == "launched" and not record["over_optimised"])


def launches(found: Sequence[Mapping[str, Any]]) -> int:
    """How many of these generations count as launches."""
    return sum(map(is_launch, found))


def is_over(plan: Campaign, found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether enough was launched, or tried."""
    return launches(found) >= plan.launches or len(found) >= plan.max_generations
