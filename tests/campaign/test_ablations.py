"""What ablations differ in from their campaign: what was left out, and nothing else that is not told."""

import pytest

from flywheel_tasks.campaign import ablations
from flywheel_tasks.campaign.ablations import begin, others
from flywheel_tasks.campaign.folder import CampaignError, Folder
from flywheel_tasks.settings import Campaign, load_settings
from flywheel_tasks.storage.documents import read_json, write_json
from tests.campaign.handmade import PROJECT, make_campaign, record

GRAPH = "stages: {a: {cmd: 'true', meta: {run: 'm:f'}, deps: [code], outs: [out]}}"
WITHOUT = {"ablations": {"no_rl": {"rl.steps": 1}}}


def _workspace(folder):
    """Code of a project, where no stage runs."""
    for name, text in (
        ("dvc.yaml", GRAPH),
        (".dvcignore", ""),
        ("launchers/a", "a"),
        ("code/b/c.py", "c = 1\n"),
    ):
        path = folder.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A campaign of one generation, and an ablation of it that has one too."""
    folder = make_campaign(tmp_path / "c", [record(1)], WITHOUT)
    _workspace(folder)
    ablation = Folder(folder.home / "ablations/no_rl")
    plan = Campaign.model_validate(read_json(folder.plan))
    make_campaign(ablation.home, [record(1)])
    _workspace(ablation)
    write_json(ablations._short(plan, "no_rl", folder.home), ablation.plan)
    return folder, ablation, plan


def test_one_that_differs_in_nothing_else_goes_on_and_stands_by_its_name(campaign, tmp_path):
    folder, ablation, plan = campaign
    (ablation.workspace / "code/__pycache__").mkdir()
    (ablation.workspace / "code/__pycache__/c.pyc").write_text("made by running")
    (ablation.workspace / "out").write_text("made by running")
    (ablation.home / "params.yaml").write_text("# a remark\n" + (PROJECT / "params.yaml").read_text())
    assert [one.home for one in begin(folder, tmp_path, plan, None, tmp_path / "cache")] == [ablation.home]
    assert list(others(folder)) == ["no_rl"]


def _code(ablation):
    (ablation.workspace / "code/b/c.py").write_text("c = 2\n")


def _params(ablation):
    path = ablation.home / "params.yaml"
    path.write_text(path.read_text().replace("\nseed: ", "\nseed: 1"))


def _rules(ablation):
    path = ablation.home / "gate_rules.yaml"
    path.write_text(path.read_text().replace("high: 0.65", "high: 0.66"))


def _section(ablation):
    write_json(read_json(ablation.plan) | {"panel_users": 6}, ablation.plan)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_code, "code"),
        (_params, "params.yaml"),
        (_rules, "gate_rules.yaml"),
        (_section, "settings of the section campaign"),
    ],
)
def test_one_that_was_begun_with_something_else_is_not_gone_on_with_and_marked(
    campaign, tmp_path, change, name
):
    folder, ablation, plan = campaign
    change(ablation)
    with pytest.raises(CampaignError, match=rf"no_rl was begun with other {name} than .*; remove it"):
        list(begin(folder, tmp_path, plan, "no_rl", tmp_path / "cache"))
    assert list(others(folder)) == [f"no_rl (other {name})"]


def test_one_without_a_campaign_that_has_other_settings_now_is_told_what_there_is_to_do(campaign, tmp_path):
    folder, _, plan = campaign
    folder.plan.unlink()
    now = plan.model_copy(update={"panel_users": 6})
    with pytest.raises(CampaignError, match="remove it to begin it again, or choose another --folder"):
        list(begin(folder, folder.home, now, None, tmp_path / "cache"))


@pytest.mark.parametrize(("ceiling", "start"), [(True, 0.58), (False, None)])
def test_without_rl_nothing_is_taken_away_for_it(ceiling, start):
    settings = load_settings(PROJECT / "params.yaml")
    plan = settings.campaign
    assert settings.rl.target_win_rate == 0.58
    if not ceiling:
        plan = plan.model_copy(update={"overlay": plan.overlay | plan.without_ceiling})
    overlay = ablations._short(plan, "no_rl", PROJECT)["overlay"]
    assert overlay.get("rl.start_win_rate") == start
    assert "rl.start_win_rate" not in ablations._short(plan, "no_rewrites", PROJECT)["overlay"] or not ceiling
    fixed = plan.model_copy(update={"ablations": {"a": {"rl.hand_over": "start", "rl.start_win_rate": 0.55}}})
    assert ablations._short(fixed, "a", PROJECT)["overlay"]["rl.start_win_rate"] == 0.55
