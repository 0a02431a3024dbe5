"""Ablations: the first generations of a campaign again, with something left out, in folders of their own.

They share DVC's cache with the campaign, so what does not depend on what was left out is restored and not run again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flywheel_tasks.campaign.folder import CampaignError, Folder, create, differences, override
from flywheel_tasks.campaign.records import records
from flywheel_tasks.campaign.table import document
from flywheel_tasks.settings import Campaign
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.fast_yaml import load_yaml

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
        CampaignError: there is no such ablation, or it was begun with something else than its campaign.
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
        ablation, short = Folder(folder.home / "ablations" / name), _short(plan, name, settings)
        if ablation.plan.exists() and (other := _other(folder, ablation, short)):
            raise CampaignError(
                f"{ablation.home} was begun with other {', '.join(other)} than its campaign has, beside which it "
                "would stand in a table; remove it to begin it again, or choose another --folder"
            )
        create(ablation, source, short, cache, settings)
        yield ablation


def _short(plan: Campaign, name: str, settings: Path) -> dict[str, Any]:
    """The plan of an ablation, as JSON."""
    changes = plan.ablations[name]
    overlay = {**plan.overlay, **changes}
    return plan.model_dump(mode="json") | {
        "launches": GENERATIONS,
        "max_generations": GENERATIONS,
        "overoptimise_at": 0,
        "overlay": overlay | _without_room(changes, overlay, settings),
        "ablations": {},
    }


def _without_room(changes: Mapping[str, Any], overlay: Mapping[str, Any], settings: Path) -> dict[str, Any]:
    """The start's win rate where the policy before RL is handed over: the target, if there is a limit at all.

    SFT and DPO are drawn back below the target only to leave RL room; handed over so, they would lack what RL adds and
    what was taken from them for it.
    """
    if changes.get("rl.hand_over") != "start" or "rl.start_win_rate" in changes:
        return {}
    document = load_yaml((settings / "params.yaml").read_text(encoding="utf-8"))
    override(document, overlay)
    rl = document["rl"]
    return {} if rl["start_win_rate"] is None else {"rl.start_win_rate": rl["target_win_rate"]}


def _other(folder: Folder, ablation: Folder, short: Mapping[str, Any] | None) -> list[str]:
    """What an ablation was begun with that its campaign has not; one that is not begun has no code yet to compare."""
    found = [] if read_json(ablation.plan) == short else ["settings of the section campaign"]
    return found + (differences(folder, ablation) if folder.plan.exists() else [])


def others(folder: Folder) -> dict[str, Any]:
    """Documents of the ablations that have a generation behind them, by name; it tells what else they differ in."""
    found, plan = {}, Campaign.model_validate(read_json(folder.plan))
    for path in sorted((folder.home / "ablations").glob("*")):
        ablation = Folder(path)
        if ablation.plan.exists() and records(ablation):
            short = _short(plan, path.name, folder.home) if path.name in plan.ablations else None
            found[marked(path.name, _other(folder, ablation, short))] = document(ablation)
    return found


def marked(name: str, other: Sequence[str]) -> str:
    """The name of another campaign in a table, with what it was begun with that makes it another experiment."""
    return f"{name} (other {', '.join(other)})" if other else name
