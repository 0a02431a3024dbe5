"""The order of a campaign's steps, its policy, and that a kill after any of them changes nothing; without a model."""

from types import SimpleNamespace

import pytest
from dvc.repo import Repo

from flywheel_tasks.campaign import drive, online
from flywheel_tasks.campaign.clock import Clock, words_of
from flywheel_tasks.campaign.drive import records, run
from flywheel_tasks.campaign.folder import CampaignError, Folder, create, override, write_settings
from flywheel_tasks.cli import campaign as commands
from flywheel_tasks.pipeline import process
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.settings import Campaign, SettingsError, load_settings
from flywheel_tasks.storage.documents import read_json, write_json
from tests.campaign.handmade import PLAN, PROJECT, analysis, digest, make_campaign, reason, record


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (analysis(5.0, "promote"), "promoted"),
        (analysis(5.0, "reject"), "rolled_back"),
        (analysis(0.4, "inconclusive"), "promoted"),
        (analysis(-0.4, "inconclusive"), "rolled_back"),
        (analysis(9.0, result="invalid"), "rolled_back"),
    ],
)
def test_the_policy(found, answer):
    assert online.answer_of(found, "promote_if_better")[0] == answer
    strict = "promoted" if found["advice"] == "promote" else "rolled_back"
    assert online.answer_of(found, "roll_back")[0] == strict


class Killed(BaseException):
    """Ends a campaign as a kill does: nothing catches it."""


class World:
    """Stands in for pipeline, registry and panel: says what was called, and is killed at the n-th call."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.calls, self.kill_at = folder, [], None
        self.experiments = {}
        monkeypatch.setattr(drive, "ensure_champion", self.champion)
        monkeypatch.setattr(drive, "registry_of", lambda root: SimpleNamespace(state=self.state))
        monkeypatch.setattr(drive, "write_settings", self.settings)
        monkeypatch.setattr(drive, "run_generation", self.generation)
        monkeypatch.setattr(drive, "describe", self.describe)
        monkeypatch.setattr(drive, "measure", self.measure)
        monkeypatch.setattr(drive.online, "counterfactual", self.counterfactual)
        monkeypatch.setattr(drive, "_tested", self.tested)

    def call(self, *what):
        if self.kill_at == len(self.calls):
            self.kill_at = None
            raise Killed
        self.calls.append(what)

    def settings(self, folder, *changes):
        self.steps = {"rl.steps": 6, **changes[0], **changes[1]}["rl.steps"]

    def champion(self, root):
        return SimpleNamespace(generation="base", digest=digest("a"))

    def state(self):
        return SimpleNamespace(experiments=self.experiments)

    def generation(self, root, *, generation, seed, say):
        self.call("run", generation, self.steps)
        return SimpleNamespace(status="blocked" if self.steps == 16 else "launched")

    def describe(self, root, name):
        made = record(int(name[1:]), reasons=[reason()] if self.steps == 16 else [])
        return {
            key: value for key, value in made.items() if key not in ("status", "decision", "why", "seconds")
        }

    def measure(self, folder, model, out, users):
        self.call("panel", model.name)
        write_json([], out)

    def counterfactual(self, root, folder):
        self.call("counterfactual", folder.name)
        return analysis(-20.0, "reject")

    def tested(self, root, name, plan):
        self.call("test", name)
        return {"analysis": analysis(), "decision": "promoted", "why": "better", "approvals": []}


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "campaign")
    write_json(PLAN, folder.plan)
    (folder.home / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    folder.workspace.mkdir()
    return folder


def _kept(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records(folder)]


def test_the_over_optimised_generation_is_blocked_and_tested_outside_the_registry(folder, monkeypatch):
    world, said = World(folder, monkeypatch), []
    run(folder, said.append)
    assert world.calls == [
        ("run", "g0001", 6),
        ("panel", "champion"),
        ("panel", "policy"),
        ("test", "g0001"),
        ("run", "g0002", 16),
        ("counterfactual", "g0002"),
        ("run", "g0003", 6),
        ("test", "g0003"),
    ]
    found = records(folder)
    assert [(r["status"], r["over_optimised"]) for r in found] == [
        ("launched", False),
        ("blocked", True),
        ("launched", False),
    ]
    assert found[1]["why"].startswith("the gate blocks: ")
    assert "counterfactual" in found[1]
    assert "analysis" not in found[1]
    assert any("deliberately over-optimised; 1 of 2 launches done" in line for line in said)
    assert all(" left] " in line for line in said if "launches done" in line)


def test_a_kill_before_any_step_changes_nothing_of_the_result(folder, tmp_path, monkeypatch):
    World(folder, monkeypatch)
    run(folder, lambda line: None)
    for place in range(8):
        other = Folder(tmp_path / f"killed-{place}")
        write_json(PLAN, other.plan)
        world = World(other, monkeypatch)
        world.kill_at = place
        with pytest.raises(Killed):
            run(other, lambda line: None)
        run(other, lambda line: None)
        assert _kept(other) == _kept(folder)


def test_a_kill_after_the_last_record_leaves_no_disk_taken_and_nothing_running(folder, monkeypatch):
    World(folder, monkeypatch)

    def killed(folder, plan, name, say):
        if name == "g0003":
            write_json({"generation": name, "step": "A/B test", "since": "now"}, folder.now)
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(drive, "_free", killed)
        with pytest.raises(Killed):
            run(folder, lambda line: None)
    said = []
    for _ in range(2):
        run(folder, said.append)
    assert len(records(folder)) == 3
    assert [line.split("]")[0] for line in said if "GB of models removed" in line] == ["[g0003"] * 2
    assert not folder.now.exists()


def test_the_logs_of_a_counterfactual_go_though_a_kill_came_right_after_its_analysis(tmp_path):
    write_json(analysis(), tmp_path / "analysis.json")
    (tmp_path / "logs/date=2026-11-09").mkdir(parents=True)
    assert online.counterfactual(tmp_path, tmp_path) == analysis()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(("status", "again"), [("running", True), ("promoted", False)])
def test_a_test_that_runs_is_launched_again_as_a_kill_may_have_left_its_records_unkept(
    folder, monkeypatch, status, again
):
    world = World(folder, monkeypatch)
    control = SimpleNamespace(model="base", digest=digest("a"))
    world.experiments["g0001"] = SimpleNamespace(status=status, plan=SimpleNamespace(arms=[control]))
    run(folder, lambda line: None)
    assert (("run", "g0001", 6) in world.calls) == again
    assert ("test", "g0001") in world.calls


@pytest.mark.parametrize(("lift", "decision"), [(5.0, "promoted"), (-5.0, "rolled_back")])
def test_a_kill_right_after_a_tests_end_costs_no_card(tmp_path, monkeypatch, lift, decision):
    found, called = analysis(lift, "inconclusive"), []
    (tmp_path / "launch").mkdir()
    write_json(found | {"generation": "g0001"}, tmp_path / "launch/analysis.json")
    state = SimpleNamespace(experiments={"g0001": SimpleNamespace(status=decision)}, approvals=())
    monkeypatch.setattr(drive, "registry_of", lambda root: SimpleNamespace(state=lambda: state))
    monkeypatch.setattr(drive.online, "promote", lambda *_, by: called.append("promoted"))
    monkeypatch.setattr(drive.online, "rollback", lambda *_, by: called.append("rolled_back"))
    assert drive._tested(tmp_path, "g0001", Campaign.model_validate(PLAN))["decision"] == decision
    assert called == [decision], "each keeps the card, and does nothing again"


def test_a_campaign_ends_although_the_gate_blocks_everything(folder, monkeypatch):
    write_json(PLAN | {"overlay": {"rl.steps": 16}, "counterfactuals": False}, folder.plan)
    world = World(folder, monkeypatch)
    run(folder, lambda line: None)
    assert len(records(folder)) == 5
    assert not any(call[0] == "test" for call in world.calls)
    assert [call for call in world.calls if call[0] == "counterfactual"] == [("counterfactual", "g0002")]


def test_two_processes_never_run_one_campaign(folder, monkeypatch):
    World(folder, monkeypatch)
    with drive._alone(folder), pytest.raises(CampaignError, match="another process"):
        run(folder, lambda line: None)


def test_the_time_left_is_measured(tmp_path):
    folder = make_campaign(tmp_path / "timed", [record(1)])
    plan = Campaign.model_validate(PLAN)
    assert Clock(folder, plan, []).left("g0001") == 3 * 20 * 60, "two launches and the over-optimised one"
    assert Clock(folder, plan, records(folder)).left("g0002") == 2 * 660
    write_json({"g0002": {"a": 600.0}}, folder.seconds)
    assert Clock(folder, plan, records(folder)).left("g0002") == 2 * 660 - 600
    assert words_of(5460) == "1 h 31 min"


def test_an_over_optimised_launch_takes_no_launch_away(tmp_path):
    hard = record(2, champion="b", candidate="a", hard=True, decision="rolled_back")
    folder = make_campaign(tmp_path / "open", [record(1), hard], {"ceiling": False})
    plan, found = Campaign.model_validate(PLAN), records(folder)
    assert not drive.is_over(plan, found), "two are wanted, and one of these was made for the gate"
    assert Clock(folder, plan, found).launches == 1
    assert Clock(folder, plan, found).left("g0003") == 660


def test_all_runs_of_a_step_are_counted_but_one_that_was_killed(folder, monkeypatch):
    clock, ticks = Clock(folder, Campaign.model_validate(PLAN), []), iter([0.0, 5.0, 10.0, 17.0, 20.0, 21.0])
    monkeypatch.setattr("flywheel_tasks.campaign.clock.time.monotonic", lambda: next(ticks))
    with pytest.raises(ValueError, match="stage"), clock.step("g0001", "training"):
        raise ValueError("a stage failed")
    with clock.step("g0001", "training"):
        pass
    assert (clock.of("g0001"), clock.resumed("g0001")) == ({"training": 12.0}, False)
    write_json(read_json(folder.now) | {"ended": False}, folder.now)  # as a kill leaves it
    with clock.step("g0001", "panel"):
        pass
    assert (clock.of("g0001"), clock.resumed("g0001")) == ({"training": 12.0, "panel": 1.0}, True)
    assert not clock.resumed("g0002")


def test_a_generation_that_was_killed_says_so_and_tells_nothing_of_the_time_left(folder, monkeypatch):
    World(folder, monkeypatch)
    now = {"generation": "g0001", "step": "logs", "since": "then", "resumed": False, "ended": False}
    write_json(now, folder.now)
    run(folder, lambda line: None)
    found = records(folder)
    assert [record["resumed"] for record in found] == [True, False, False]
    found[0]["seconds"] = {"a": 1.0}
    assert Clock(folder, Campaign.model_validate(PLAN), found[:1]).left("g0009") == 2 * 20 * 60


def test_status_tells_a_campaign_that_runs_from_one_that_was_stopped(folder, capsys):
    write_json({"generation": "g0001", "step": "A/B test", "since": "then"}, folder.now)
    assert drive.status(folder)["running"] is False
    with drive._alone(folder):
        assert drive.status(folder)["running"] is True
        commands.status(folder.home, folder.home)
        assert "does not run" not in capsys.readouterr().out
    commands.status(folder.home, folder.home)
    said = capsys.readouterr().out
    assert "g0001: stopped in: A/B test, since then" in said
    assert f"flywheel campaign run --as-begun --folder {folder.home}" in said


def test_a_campaign_ends_with_its_tables_and_where_they_are(tmp_path, monkeypatch, capsys):
    campaign = make_campaign(tmp_path / "done", [record(1)])
    monkeypatch.setattr(process, "die_with_parent", lambda: None)
    monkeypatch.setattr(drive, "run", lambda folder, say, after: None)
    commands.drive(campaign.home)
    said = capsys.readouterr().out
    assert "## Beside the paper" in said
    assert "| launches with positive lift | – | 7 of 8 | – | 1 of 1 |" in said
    assert f"{campaign.results / 'campaign.html'}, and .md and .json beside it" in said
    assert (campaign.results / "campaign.html").exists()


def test_an_overlay_names_settings_that_exist_and_values_that_are_possible(folder):
    with pytest.raises(CampaignError, match=r"no rl\.stepz"):
        write_settings(folder, {"rl.stepz": 1})
    with pytest.raises(SettingsError, match="steps"):
        write_settings(folder, {"rl.steps": 0})
    settings = write_settings(folder, {"logs.source": "files", "rl.steps": 3})
    assert (settings.logs.source, settings.rl.steps) == ("simulated", 3), "a campaign's people are simulated"
    document = {"a": {"b": None}}
    override(document, {"a.b": [1]})
    assert document == {"a": {"b": [1]}}


def test_the_projects_campaign_can_be_made(tmp_path):
    """Every overlay, ablations included, is a setting that exists; what others edit later does not reach it."""
    settings = load_settings(PROJECT / "params.yaml")
    plan = settings.campaign.model_dump(mode="json") | {"ceiling": False}
    folder = Folder(tmp_path / "real")
    cache = tmp_path / "cache"
    create(folder, PROJECT, plan, cache)
    create(folder, PROJECT, plan, cache)
    made = load_settings(folder.workspace / "params.yaml")
    assert made.launch.traffic_share == 0.5
    stages = load_graph(folder.workspace / "dvc.yaml").values()
    for dep in {dep for stage in stages for dep in stage.deps if (PROJECT / dep).exists()}:
        where_made = dep.startswith("inputs/") or any(
            dep.startswith(out) for stage in stages for out in stage.outs
        )
        assert where_made or (folder.workspace / dep).exists(), f"{dep} was left behind"
    assert "high: 1.01" in (folder.workspace / "gate_rules.yaml").read_text()
    assert "high: 0.65" in (PROJECT / "gate_rules.yaml").read_text()
    with Repo(folder.workspace) as repo:
        assert repo.cache.local.path.startswith(str(cache)), repo.cache.local.path
    with pytest.raises(CampaignError, match="other settings"):
        create(folder, PROJECT, plan | {"launches": 3}, cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("do not touch")
    with pytest.raises(CampaignError, match="no campaign"):
        create(Folder(tmp_path / "mine"), PROJECT, plan, cache)


@pytest.mark.parametrize("command", [commands.run, commands.ablate])
def test_a_panel_whose_cards_would_not_count_alike_is_refused_before_anything_is_made(tmp_path, command):
    text = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("panel_users: 40", "panel_users: 30"))
    with pytest.raises(CampaignError, match="not a multiple of 20"):
        command(tmp_path, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_campaign_goes_on_as_it_was_begun_whatever_the_settings_say_now(tmp_path, monkeypatch):
    driven = []
    monkeypatch.setattr(commands, "_drive", lambda place: driven.append(place.home))
    (tmp_path / "params.yaml").write_text("campaign: {launches: none}")
    with pytest.raises(CampaignError, match="no campaign was begun here"):
        commands.run(tmp_path, tmp_path / "mine", as_begun=True)
    write_json(PLAN, tmp_path / "mine/plan.json")
    commands.run(tmp_path, tmp_path / "mine", as_begun=True)
    assert driven == [tmp_path / "mine"]
