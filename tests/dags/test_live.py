"""A real Airflow: from the trigger to a promoted champion, and the ways in which nothing is launched."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from flywheel_tasks.online.approval import registry_of
from flywheel_tasks.storage.digests import bytes_digest, file_digest, tree_digest
from flywheel_tasks.storage.registry_state import Arm, Plan
from tests.conftest import build_workspace
from tests.dags.live import LiveAirflow
from tests.dags.small import OVERRIDES, make_small, write_ab_logs

pytestmark = pytest.mark.slow
# What a look costs is taken from the tasks. A task reads the DAG's file itself when it starts, so no test waits until
# the file is parsed again; and one that was marked as failed learns it from its next heartbeat.
SETTINGS = {
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAirflow]:
    folder = tmp_path_factory.mktemp("live")
    root = make_small(build_workspace(folder / "workspace", OVERRIDES))
    settings = {**SETTINGS, "PYTHONPATH": str(root)}
    # Not rarer: an A/B test lasts 9 s here. Logs that are written only after it are waited for, 72 s.
    with LiveAirflow.started(root, folder / "home", overrides=settings, pause=0.5) as live:
        live.ready()
        yield live


@pytest.fixture
def root(airflow: LiveAirflow) -> Path:
    return airflow.place.root


def test_from_the_trigger_to_the_champion(airflow: LiveAirflow, root: Path) -> None:
    run = airflow.trigger({"generation": "g0001", "seed": 7})
    launch = airflow.question(run, "approve_launch", 120)
    model, verdict = tree_digest(root / "models/policy"), file_digest(root / "gate/verdict.json")
    assert model in launch["body"]
    assert verdict in launch["body"]
    assert "| evaluate.win_rate | 0.55 |" in launch["body"]
    assert "{{ 7 * 7 }} {% raw" in launch["body"]  # text of users is shown, never rendered
    assert (launch["options"], launch["defaults"]) == (["Approve", "Reject"], ["Reject"])
    assert registry_of(root).state().experiments == {}
    assert (root / "models/policy/model.safetensors").read_text() == "g0001 7"

    airflow.answer(run, "approve_launch", "Approve")
    started = airflow.until("the test runs", lambda: registry_of(root).state().running("g0001"), 60)
    write_ab_logs(root, started)
    promotion = airflow.question(run, "approve_promotion", 180)
    experiment = registry_of(root).state().experiments["g0001"]
    assert experiment.status == "running"
    assert experiment.analysis is not None
    assert experiment.analysis.digest in promotion["body"]
    assert model in promotion["body"]
    assert "| Depth: messages per exposed user |" in promotion["body"]
    assert "Simulated" not in promotion["body"]
    assert registry_of(root).state().champion.generation == "base"

    airflow.answer(run, "approve_promotion", "Approve")
    assert airflow.wait_for_end(run, 60) == "success"
    states = airflow.states(run)
    assert states.pop("rollback") == "skipped"
    assert set(states.values()) == {"success"}
    state = registry_of(root).state()
    assert (state.champion.generation, state.champion.digest) == ("g0001", model)
    answers = [(item.kind, item.decision, item.by, item.shown) for item in state.approvals]
    assert answers == [
        ("launch", "approve", "admin", (model, verdict)),
        ("promotion", "approve", "admin", (model, experiment.analysis.digest)),
    ]


def test_a_failed_gate_asks_nobody_and_launches_nothing(airflow: LiveAirflow, root: Path) -> None:
    before = registry_of(root).state()
    (root / "wish.txt").write_text("block\n")
    run = airflow.trigger({"generation": "g0002"})
    assert airflow.wait_for_end(run, 120) == "failed"
    states = airflow.states(run)
    assert states["check_gate"] == "failed"
    assert "win rate 0.71 is above 0.65" in airflow.log(run, "check_gate")
    later = ("approve_launch", "record_launch_decision", "launch", "start_ab_test", "promote", "rollback")
    assert {task: states[task] for task in later} == dict.fromkeys(later, "upstream_failed")
    assert airflow.asked(run) == []
    assert registry_of(root).state() == before
    last = registry_of(root).history()[-1]
    assert (last.kind, last.detail["generation"], last.by) == ("declined", "g0002", f"airflow: {run}")


def test_a_no_is_recorded_and_launches_nothing(airflow: LiveAirflow, root: Path) -> None:
    (root / "wish.txt").write_text("pass\n")
    run = airflow.trigger({"generation": "g0003"})
    airflow.question(run, "approve_launch", 120)
    airflow.answer(run, "approve_launch", "Reject")
    assert airflow.wait_for_end(run, 60) == "success"
    states = airflow.states(run)
    assert states["rollback"] == "success"
    assert {states[task] for task in ("launch", "start_ab_test", "promote")} == {"skipped"}
    state = registry_of(root).state()
    assert (state.approvals[-1].decision, state.approvals[-1].generation) == ("reject", "g0003")
    assert "g0003" not in state.experiments
    last = registry_of(root).history()[-1]
    assert (last.kind, last.detail["generation"]) == ("declined", "g0003")


def test_an_approval_of_something_that_changed_is_refused(airflow: LiveAirflow, root: Path) -> None:
    run = airflow.trigger({"generation": "g0004"})
    airflow.question(run, "approve_launch", 120)
    (root / "models/policy/model.safetensors").write_text("another model")
    airflow.answer(run, "approve_launch", "Approve")
    assert airflow.wait_for_end(run, 60) == "failed"
    assert airflow.states(run)["record_launch_decision"] == "failed"
    assert "is about model" in airflow.log(run, "record_launch_decision")
    assert "g0004" not in registry_of(root).state().experiments


def test_a_cleared_question_is_not_asked_with_its_old_text(airflow: LiveAirflow, root: Path) -> None:
    run = airflow.trigger({"generation": "g0005"})
    before = airflow.question(run, "approve_launch", 120)
    airflow.clear(run, "train", "gate", "check_gate", "approve_launch")
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 7", "seed: 8"))
    assert airflow.wait_for_end(run, 120) == "failed"
    assert airflow.question_now(run, "approve_launch")["body"] == before["body"]
    assert "still holds an earlier question" in airflow.log(run, "approve_launch", 2)


def processes_of(root: Path) -> list[psutil.Process]:
    """Processes of DVC and stages in the workspace."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if Path(process.cwd()) == root and ("flywheel stage" in words or "dvc " in words):
                found.append(process)
    return found


def test_a_killed_task_takes_its_dvc_and_stage_with_it(airflow: LiveAirflow, root: Path) -> None:
    (root / "slow").touch()
    try:
        run = airflow.trigger({"generation": "g0006"})

        def training() -> bool:
            return any("flywheel stage train" in " ".join(p.cmdline()) for p in processes_of(root))

        airflow.until("stage train runs", training, 120)
        airflow.mark_failed(run, "train")
        airflow.until("its processes are gone", lambda: not processes_of(root), 60)
    finally:
        (root / "slow").unlink()
    assert airflow.wait_for_end(run, 60) == "failed"


def test_silence_is_a_no(airflow: LiveAirflow, root: Path) -> None:
    params = root / "params.yaml"
    assert "approval_timeout_hours: 72" in params.read_text()
    params.write_text(
        params.read_text().replace("approval_timeout_hours: 72", "approval_timeout_hours: 0.0005")
    )
    run = airflow.trigger({"generation": "g0007"})
    assert airflow.wait_for_end(run, 120) == "success"
    assert airflow.states(run)["rollback"] == "success"
    assert airflow.states(run)["launch"] == "skipped"
    answer = registry_of(root).state().approvals[-1]
    assert (answer.generation, answer.decision) == ("g0007", "timeout")
    assert answer.by == "nobody (no answer in time)"


def start_another_test(root: Path) -> None:
    """Start a test of another generation in the same layer, as another team's workspace does."""
    registry = registry_of(root)
    champion = registry.state().champion
    digest = bytes_digest(b"another")
    arms = (
        Arm(name="control", share=0.1, model=champion.generation, digest=champion.digest),
        Arm(name="candidate", share=0.1, model="g0100", digest=digest),
    )
    plan = Plan(
        experiment="g0100",
        generation="g0100",
        salt="g0100",
        layer="policy",
        arms=arms,
        verdict_digest=digest,
        model_digest=digest,
    )
    shown = {"generation": "g0100", "model_digest": digest, "verdict_digest": digest}
    registry.record_approval("launch", decision="approve", by="ada", **shown)
    candidate = champion.model_copy(update={"generation": "g0100", "digest": digest})
    registry.start_experiment(plan, candidate, by="ada", duration=timedelta(days=7))


def test_a_harmful_arm_is_stopped_early_beside_another_test(airflow: LiveAirflow, root: Path) -> None:
    params = root / "params.yaml"
    changes = {
        "traffic_share: 0.5": "traffic_share: 0.4",
        "duration_minutes: 0.15": "duration_minutes: 600",
        "look_minutes: 1440": "look_minutes: 0.05",
        "approval_timeout_hours: 0.0005": "approval_timeout_hours: 72",
    }
    text = params.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    params.write_text(text)
    start_another_test(root)
    run = airflow.trigger({"generation": "g0008"})
    airflow.question(run, "approve_launch", 120)
    airflow.answer(run, "approve_launch", "Approve")
    airflow.wait_for_state(run, "watch_ab", "deferred", 60)
    airflow.clear(run, "watch_ab")  # it starts anew, as after a restart: what it knows is in the registry
    started = registry_of(root).state().running("g0008")
    assert [draw.experiment for draw in started.plan.excludes] == ["g0100"]
    write_ab_logs(root, started, 400, harmful=True)
    assert airflow.wait_for_end(run, 120) == "success"
    states = airflow.states(run)
    assert (states["watch_ab"], states["rollback"]) == ("success", "success")
    assert {states[task] for task in ("analyze_ab", "approve_promotion", "promote")} == {"skipped"}
    state = registry_of(root).state()
    ended = state.experiments["g0008"]
    assert ended.status == "rolled_back"
    assert "stopped by a guardrail on day 1: Breadth" in ended.end_reason
    assert ended.checks[-1].result == "stop"
    assert [item.plan.experiment for item in state.all_running()] == ["g0100"]


def test_parsing_again_makes_no_new_version(airflow: LiveAirflow) -> None:
    assert (
        airflow.versions() == 1
    )  # though the file has been parsed every ten seconds, and params.yaml has changed


def test_the_login_is_not_open(airflow: LiveAirflow) -> None:
    with httpx.Client(base_url=airflow.place.url) as stranger:
        assert stranger.get("/api/v2/dags").status_code == 401
        wrong = stranger.post("/auth/token", json={"username": "admin", "password": "admin"})
        assert wrong.status_code == 401
    assert airflow.place.passwords.stat().st_mode & 0o077 == 0
    password = airflow.place.passwords.read_text().split('"')[3]
    logs = "".join(path.read_text(errors="replace") for path in airflow.place.home.glob("logs/*.log"))
    assert password not in logs
