"""The same small generation by a real Airflow: every stage, simulated users in both arms, two people's answers."""

import subprocess
from pathlib import Path

import pytest

from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.generation import open_generation
from flywheel_tasks.pipeline.generation_ids import current
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.tables import read_rows
from tests.conftest import build_workspace
from tests.dags.live import LiveAirflow
from tests.generation.small import make_repository, metrics_of, small_settings

pytestmark = pytest.mark.slow
# The run takes minutes, in which looking often would take the core that its stages and the other tests compute on.
# Nothing in it changes the DAG after its first parse.
PATIENT = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.7",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
}


@pytest.fixture(scope="module")
def promoted(tmp_path_factory, tiny_models):
    """A workspace after a run of the DAG in which both questions were answered over REST."""
    folder = tmp_path_factory.mktemp("airflow")
    root = make_repository(folder / "workspace", build_workspace, small_settings(tiny_models))
    with LiveAirflow.started(root, folder / "home", overrides=PATIENT, pause=2) as airflow:
        airflow.ready()
        run = airflow.trigger({"generation": "g0001"})
        launch = airflow.question(run, "approve_launch", 900)
        airflow.answer(run, "approve_launch", "Approve")
        promotion = airflow.question(run, "approve_promotion", 300)
        airflow.answer(run, "approve_promotion", "Approve")
        assert airflow.wait_for_end(run, 120) == "success", airflow.states(run)
    return root, launch, promotion


def test_two_answers_make_the_candidate_champion(promoted):
    root, launch, promotion = promoted
    state = open_registry("registry", root).state()
    model = tree_digest(root / "models/policy")
    assert state.champion.digest == model
    assert state.previous.generation == "base"
    assert [(a.kind, a.decision, a.by) for a in state.approvals] == [
        ("launch", "approve", "admin"),
        ("promotion", "approve", "admin"),
    ]
    for body in (launch["body"], promotion["body"]):
        assert model in body
        assert "imulated" in body, "a reader must be told that the users are simulated"


def test_airflow_and_a_killed_local_run_give_the_same_figures(promoted, launched):
    """Same seed, same machine: neither the scheduler, nor another workspace, nor kills change a metric."""
    assert metrics_of(promoted[0]) == launched.metrics


def test_the_next_generation_starts_from_the_new_champion_and_newest_logs(promoted, tmp_path):
    """On another machine, from the repository, the registry and the DVC remote alone."""
    root: Path = promoted[0]
    clone = tmp_path / "worker"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    (clone / ".dvc/config").write_text((root / ".dvc/config").read_text())
    (clone / "registry").symlink_to(root / "registry")
    (clone / "data").mkdir()
    (clone / "data/logs").symlink_to(root / "data/logs")
    assert open_generation(clone) == "g0002"
    champion = open_registry("registry", root).state().champion
    assert tree_digest(clone / "inputs/champion") == champion.digest
    pinned = current(clone)
    assert pinned["champion"] == {"model": "g0001", "digest": champion.digest}
    placed = read_rows(clone / "inputs/earlier_pairs/g0001.parquet")
    pairs = read_rows(root / "data/preferences/pairs.parquet")
    assert placed == [row for row in pairs if row["purpose"] == "reward_train"], "from DVC's remote"
    dates = sorted(path.name for path in (root / "data/logs").glob("date=*"))
    logs = (clone / "inputs/logs.json").read_text()
    assert dates[-1] in logs, "the A/B test's logs are the next generation's data"
    runner.dvc(clone, "repro", "--single-item", "--pull", "ingest")
    assert (clone / "data/ingested/exposures.parquet").exists()
