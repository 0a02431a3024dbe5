"""With what a campaign, one without a ceiling and the ablations of one are begun; nothing is made or driven."""

from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.campaign import ablations
from flywheel_tasks.campaign import folder as folders
from flywheel_tasks.campaign.folder import CampaignError, Folder
from flywheel_tasks.cli import campaign as commands
from flywheel_tasks.settings import Campaign, load_settings
from flywheel_tasks.storage.documents import write_json
from tests.campaign.handmade import PLAN, PROJECT

WITHOUT = {
    "nothing_more": {},
    "no_rl": {"rl.steps": 1},
    "no_rewrites": {"annotate.rewrites": False, "sft.epochs": 1.0},
}
PLANNED = {
    **PLAN,
    "launches": 4,
    "max_generations": 9,
    "overlay": {"rl.steps": 8, "sft.epochs": 2.0},
    "without_ceiling": {"rl.target_win_rate": 0.9},
    "ablations": WITHOUT,
}


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What campaigns were asked for: their folder, code, plan, cache and settings."""
    asked: list[dict[str, Any]] = []

    def create(folder: Folder, source: Path, plan: Any, cache: Path, settings: Path | None = None) -> None:
        asked.append(
            {"home": folder.home, "source": source, "plan": plan, "cache": cache, "settings": settings}
        )

    monkeypatch.setattr(folders, "create", create)
    monkeypatch.setattr(ablations, "create", create)
    monkeypatch.setattr(commands, "_drive", lambda folder: asked.append({"driven": folder.home}))
    return asked


def test_an_ablation_is_two_generations_of_the_campaign_with_its_own_changes_on_top(
    created: list[dict[str, Any]], tmp_path: Path
) -> None:
    plan = Campaign.model_validate(PLANNED)
    begun = ablations.begin(Folder(tmp_path / "c"), tmp_path, plan, None, tmp_path / "cache")
    for name, changes in WITHOUT.items():
        assert next(begun).home == created[-1]["home"] == tmp_path / "c/ablations" / name
        assert created[-1]["plan"] == PLANNED | {
            "launches": 2,
            "max_generations": 2,
            "overoptimise_at": 0,
            "overlay": {**PLANNED["overlay"], **changes},
            "ablations": {},
        }
        assert (created[-1]["source"], created[-1]["settings"]) == (tmp_path, tmp_path)
        assert created[-1]["cache"] == tmp_path / "cache"
    assert next(begun, None) is None
    assert len(created) == len(WITHOUT)


def test_ablations_of_a_campaign_that_was_begun_have_its_code_and_settings(
    created: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "c")
    write_json(PLANNED, folder.plan)
    now = Campaign.model_validate(PLANNED | {"overlay": {"rl.steps": 3}, "ablations": {}})
    (begun,) = ablations.begin(folder, tmp_path, now, "no_rl", tmp_path / "cache")
    assert begun.home == folder.home / "ablations/no_rl"
    assert created[0]["plan"]["overlay"] == {"rl.steps": 1, "sft.epochs": 2.0}
    assert (created[0]["source"], created[0]["settings"]) == (folder.workspace, folder.home)
    with pytest.raises(CampaignError, match=r"no no_luck; it has no_rewrites, no_rl, nothing_more"):
        next(ablations.begin(folder, tmp_path, now, "no_luck", tmp_path / "cache"))


@pytest.mark.parametrize("ceiling", [True, False])
def test_without_a_ceiling_its_changes_are_on_top_and_its_folder_is_another(
    ceiling: bool, created: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    plan = load_settings(PROJECT / "params.yaml").campaign.model_dump(mode="json")
    assert plan["without_ceiling"]
    commands.run(tmp_path, None, without_ceiling=not ceiling)
    asked, driven = created
    home = tmp_path / "campaigns" / ("default" if ceiling else "without-ceiling")
    assert asked["home"] == driven["driven"] == home
    assert asked["cache"] == tmp_path / "campaigns/cache"
    more = {} if ceiling else plan["without_ceiling"]
    assert asked["plan"] == plan | {"ceiling": ceiling, "overlay": {**plan["overlay"], **more}}
