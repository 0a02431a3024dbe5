"""Ablations: the first generations of a campaign again, with something left out, in folders of their own.

They share DVC's cache with the campaign, so what does not depend on what was left out is restored and not run again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flywheel_tasks.campaign.folder import CampaignError, Folder, create
from flywheel_tasks.campaign.records import records
from flywheel_tasks.campaign.table import document
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json

GENERATIONS = 2


def begin(folder: Folder, source: Path, plan: Campaign, only: str | None, cache: Path) -> Iterator[Folder]:
    """Make the workspaces of the ablations, one after the other.

    Args:
        folder: of the campaign that they belong to; it need not have run.
        source: the project; of a campaign that was begun its own code and settings are taken, however these changed.
        plan: the settings; likewise.
        only: the name of one; by default all.
        cache: of DVC, shared.

    Raises:
        CampaignError: there is no such ablation.
    """
    settings = source
    if folder.plan.exists():  # set beside it in a table, so nothing else may differ
        plan = Campaign.model_validate(read_json(folder.plan))
        source, settings = folder.workspace, folder.home
    names = [only] if only is not None else list(plan.ablations)
    if unknown := set(names) - set(plan.ablations):
        raise CampaignError(
            f"campaign.ablations has no {', '.join(sorted(unknown))}; it has {', '.join(plan.ablations)}"
        )
    for name in names:
        short = plan.model_dump(mode="json") | {
            "launches": GENERATIONS,
            "max_generations": GENERATIONS,
            "overoptimise_at": 0,
            "overlay": {**plan.overlay, **plan.ablations[name]},
            "ablations": {},
        }
        ablation = Folder(folder.home / "ablations" / name)
        create(ablation, source, short, cache, settings)
        yield ablation


def others(folder: Folder) -> dict[str, Any]:
    """Documents of the ablations that have a generation behind them, by name."""
    found = {}
    for path in sorted((folder.home / "ablations").glob("*")):
        if Folder(path).plan.exists() and records(Folder(path)):
            found[path.name] = document(Folder(path))
    return found
