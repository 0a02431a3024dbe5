"""A campaign of two launches on tiny models: the first goes on from the small generation, the second is killed."""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from flywheel_tasks.campaign import online
from flywheel_tasks.campaign.ablations import others
from flywheel_tasks.campaign.drive import environment, records, run, status
from flywheel_tasks.campaign.folder import Folder, share
from flywheel_tasks.campaign.page import write
from flywheel_tasks.campaign.table import document
from flywheel_tasks.pipeline import runner
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.registry import open_registry
from tests.generation.small import stages_run

pytestmark = pytest.mark.slow
VALUE = re.compile(rb'"utility": ?-?\d+\.\d')  # a tokenizer has the word too, but no such number


def _content(path):
    """Of a file, compressed or not."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _kill_in_second_generation(folder):
    """Start the campaign by its command and kill it by SIGKILL while g0002 trains its policy."""
    command = [sys.executable, "-m", "flywheel_tasks.cli", "campaign", "drive", str(folder.home)]
    process = subprocess.Popen(
        command, cwd=folder.workspace, env=environment(folder), stdout=subprocess.DEVNULL
    )
    resume, before = folder.workspace / ".flywheel/resume/sft", stages_run(folder.workspace)["sft"]
    while not folder.generation("g0001").exists() or not list(resume.glob("*/checkpoint-*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert stages_run(folder.workspace)["sft"] == before


@pytest.fixture(scope="module")
def campaign(launched, tmp_path_factory):
    """The campaign's folder when it is over, and what was done before the kill."""
    folder = Folder(tmp_path_factory.mktemp("campaign") / "tiny")
    shutil.copytree(launched.root, folder.workspace, symlinks=True)
    for name in ("params.yaml", "gate_rules.yaml"):
        shutil.copy(folder.workspace / name, folder.home / name)
    plan = load_settings(folder.home / "params.yaml").campaign.model_dump(mode="json")
    plan |= {"launches": 2, "max_generations": 2, "overoptimise_at": 0, "overlay": {}, "panel_users": 3}
    runner.dvc(folder.workspace, "config", "cache.type", "reflink,hardlink,copy")  # as a campaign has it
    share(folder, folder.workspace / ".dvc/cache")
    write_json(plan, folder.plan)
    _kill_in_second_generation(folder)
    before = stages_run(folder.workspace)
    run(folder, print)
    return folder, before


def test_two_launches_answered_by_policy(campaign):
    folder, _ = campaign
    found = records(folder)
    assert [(r["generation"], r["status"]) for r in found] == [("g0001", "launched"), ("g0002", "launched")]
    state = open_registry("registry", folder.workspace).state()
    assert {r["decision"] for r in found} <= {"promoted", "rolled_back"}
    assert [state.experiments[r["generation"]].status for r in found] == [r["decision"] for r in found]
    champion = next((r for r in reversed(found) if r["decision"] == "promoted"), None)
    assert (
        state.champion.digest
        == (champion or {"candidate_digest": found[0]["champion_digest"]})["candidate_digest"]
    )
    assert (
        found[1]["champion_digest"]
        == found[0]["candidate_digest" if found[0]["decision"] == "promoted" else "champion_digest"]
    )
    for record in found:
        assert {a["kind"] for a in record["approvals"]} >= {"launch"}
        assert all(a["by"].startswith("policy") for a in record["approvals"])
        if record["analysis"]["result"] == "valid":
            assert any(a["kind"] == "promotion" for a in record["approvals"])


def test_what_was_done_before_the_kill_was_not_done_again(campaign):
    folder, before = campaign
    after = stages_run(folder.workspace)
    done = ("ingest", "annotation_batch", "train_pointwise_rm", "rejection_sample")
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert after["sft"] > before["sft"]


def test_the_second_generation_learns_from_the_newest_logs(campaign):
    folder, _ = campaign
    pinned = read_json(folder.workspace / "inputs/logs.json")["partitions"]
    assert any("ab-g0001" in item["path"] for item in pinned), "the last test's logs are data"


def test_the_hidden_utility_is_in_the_results_only(campaign):
    folder, _ = campaign
    panels = list((folder.results / "panels").glob("*.jsonl"))
    assert len(panels) == 3
    assert all(VALUE.search(panel.read_bytes()) for panel in panels)
    code = folder.workspace / "flywheel_tasks"
    read = [path for path in folder.workspace.rglob("*.json*") if not path.is_relative_to(code)]
    assert any(path.name.endswith(".jsonl.gz") for path in read), "logs are read too"
    assert [path for path in read if VALUE.search(_content(path))] == []


def test_models_that_nothing_reads_again_are_gone_and_the_champion_is_not(campaign):
    folder, _ = campaign
    cached = {path.parent.name + path.name for path in (folder.cache / "files/md5").glob("*/*.dir")}
    state = open_registry("registry", folder.workspace).state()
    wanted = {ref.dvc.md5 for ref in (state.champion, state.previous) if ref is not None}
    first, second = (set(record["models"].values()) for record in records(folder))
    assert len(first) == len(second) == 5
    assert wanted <= cached
    assert first <= cached, "ablations restore them"
    assert (second - first) & cached == (second - first) & wanted
    for tree in wanted:
        for entry in read_json(folder.cache / "files/md5" / tree[:2] / tree[2:]):
            assert (folder.cache / "files/md5" / entry["md5"][:2] / entry["md5"][2:]).exists()


def test_the_workspace_that_it_began_with_is_untouched(campaign, launched):
    assert len(open_registry("registry", launched.root).history()) == 3
    assert not list((launched.root / "data/logs").glob("date=*/ab-*"))


def test_a_campaign_that_is_over_does_nothing_more(campaign):
    folder, _ = campaign
    before, digest = stages_run(folder.workspace), tree_digest(folder.results)
    run(folder, print)
    assert (stages_run(folder.workspace), tree_digest(folder.results)) == (before, digest)
    assert status(folder)["over"]


def test_its_table_is_written(campaign):
    folder, _ = campaign
    found = document(folder)
    write(folder.results, found, others(folder))
    assert len(found["champions"]) == 3
    page = (folder.results / "campaign.html").read_text()
    assert "simulated" in page
    assert "://" not in page
    assert found["paper"][0]["last"].endswith("of 2")


def test_a_counterfactual_leaves_registry_and_logs_alone(campaign, tmp_path):
    folder, _ = campaign
    root = folder.workspace
    # The last candidate went when its generation was over; the test of two equal arms is one, too.
    shutil.copytree(root / "inputs/champion", root / "models/policy", dirs_exist_ok=True)
    before = tree_digest(root / "registry"), tree_digest(root / "data/logs")
    analysis = online.counterfactual(root, tmp_path / "g0002")
    assert analysis["counterfactual"] is True
    assert min(analysis["users"].values()) > 0
    assert (tree_digest(root / "registry"), tree_digest(root / "data/logs")) == before
    assert online.counterfactual(root, tmp_path / "g0002") == analysis
