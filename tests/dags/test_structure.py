"""The DAG is the graph of dvc.yaml plus the gates, and it is the same at every parse."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.settings import load_settings
from tests.conftest import PROJECT, build_workspace

PARSE = """
import json, sys
from weekly_generation import dag
heavy = sorted({"torch", "pandas", "dvc", "transformers", "pyarrow", "numpy", "duckdb"} & set(sys.modules))
from airflow.serialization.serialized_objects import DagSerialization
print(json.dumps({"heavy": heavy, "dag": DagSerialization.to_dict(dag)}, sort_keys=True))
"""


def parse(home: Path, root: Path, hash_seed: str) -> dict[str, Any]:
    """Parse the DAG of a workspace in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        env={
            **kept,
            "AIRFLOW_HOME": str(home),
            "FLYWHEEL_ROOT": str(root),
            "PYTHONPATH": str(PROJECT / "dags"),
            "PYTHONHASHSEED": hash_seed,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture(scope="module")
def parsed(home: Path) -> dict[str, Any]:
    return parse(home, PROJECT, "0")


@pytest.fixture(scope="module")
def tasks(parsed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Serialised tasks by id."""
    return {task["__var"]["task_id"]: task["__var"] for task in parsed["dag"]["dag"]["tasks"]}


@pytest.fixture(scope="module")
def edges(tasks: dict[str, dict[str, Any]]) -> set[tuple[str, str]]:
    return {(name, child) for name, task in tasks.items() for child in task.get("downstream_task_ids", [])}


def test_parsing_imports_nothing_heavy(parsed: dict[str, Any]) -> None:
    assert parsed["heavy"] == []


def test_parsing_twice_gives_the_same(home: Path, parsed: dict[str, Any]) -> None:
    again = parse(home, PROJECT, "12345")
    assert json.dumps(again["dag"], sort_keys=True) == json.dumps(parsed["dag"], sort_keys=True)
    # Order within lists matters to the version that Airflow stores, so it is compared as it is, not sorted.
    names = [task["__var"]["task_id"] for task in parsed["dag"]["dag"]["tasks"]]
    assert [task["__var"]["task_id"] for task in again["dag"]["dag"]["tasks"]] == names


def test_edges_between_stages_are_those_of_dvc_yaml(edges: set[tuple[str, str]]) -> None:
    graph = load_graph(PROJECT / "dvc.yaml")
    of_stages = {(parent, child) for parent, child in edges if parent in graph and child in graph}
    assert of_stages == {(parent, name) for name, stage in graph.items() for parent in stage.upstream}


def test_edges_of_the_gates(edges: set[tuple[str, str]]) -> None:
    graph = load_graph(PROJECT / "dvc.yaml")
    others = {(parent, child) for parent, child in edges if parent not in graph or child not in graph}
    first = {("open_generation", name) for name, stage in graph.items() if not stage.upstream}
    assert others - first == {
        ("choose_generation", "simulate_traffic"),
        ("simulate_traffic", "open_generation"),
        ("gate", "check_gate"),
        ("check_gate", "approve_launch"),
        ("check_gate", "launch"),
        ("approve_launch", "record_launch_decision"),
        ("record_launch_decision", "launch"),
        ("record_launch_decision", "rollback"),
        ("launch", "start_ab_test"),
        ("start_ab_test", "simulate_ab_traffic"),
        ("simulate_ab_traffic", "watch_ab"),
        ("watch_ab", "analyze_ab"),
        ("watch_ab", "rollback"),
        ("analyze_ab", "approve_promotion"),
        ("analyze_ab", "rollback"),
        ("approve_promotion", "record_promotion_decision"),
        ("record_promotion_decision", "promote"),
        ("record_promotion_decision", "rollback"),
    }
    assert first <= others


def test_a_launch_goes_on_without_its_question_but_not_after_a_failure(tasks: dict[str, Any]) -> None:
    assert tasks["launch"]["trigger_rule"] == "none_failed_min_one_success"


def test_a_new_stage_of_dvc_yaml_is_a_new_task(home: Path, tmp_path: Path) -> None:
    root = build_workspace(tmp_path, {"logs.source": "files", "airflow.schedule": None})
    document = yaml.safe_load((root / "dvc.yaml").read_text())
    document["stages"]["extra"] = {
        "cmd": "exec flywheel stage extra",
        "deps": ["data/split"],
        "outs": ["data/extra"],
        "meta": {"run": "a:b", "queue": "gpu"},
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    found = parse(home, root, "1")["dag"]["dag"]
    tasks = {task["__var"]["task_id"]: task["__var"] for task in found["tasks"]}
    assert "extra" in tasks["split"]["downstream_task_ids"]
    assert (tasks["extra"]["pool"], tasks["extra"]["queue"]) == ("gpu", "gpu")
    assert not {"simulate_traffic", "simulate_ab_traffic"} & tasks.keys()  # real logs: nobody is simulated
    assert str(root) not in json.dumps(found["tasks"])  # a worker's workspace is elsewhere


def test_a_generation_of_people_waits_for_their_labels(
    home: Path, tmp_path: Path, tasks: dict[str, Any]
) -> None:
    assert "wait_for_labels" not in tasks  # simulated annotators need no waiting
    root = build_workspace(tmp_path, {"label.annotator": "label_studio", "airflow.schedule": None})
    found = {
        task["__var"]["task_id"]: task["__var"] for task in parse(home, root, "1")["dag"]["dag"]["tasks"]
    }
    assert "wait_for_labels" in found["annotation_batch"]["downstream_task_ids"]
    assert found["wait_for_labels"]["downstream_task_ids"] == ["label"]
    assert found["wait_for_labels"]["reschedule"] is True  # takes no worker between two looks


def test_gpu_stages_run_in_the_pool(tasks: dict[str, dict[str, Any]]) -> None:
    for name, stage in load_graph(PROJECT / "dvc.yaml").items():
        assert tasks[name]["queue"] == stage.queue
        assert tasks[name].get("pool", "default_pool") == ("gpu" if stage.queue == "gpu" else "default_pool")


@pytest.fixture(scope="module")
def dag(home: Path) -> Any:
    """The DAG object, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.syspath_prepend(str(PROJECT / "dags"))
        from flywheel_dag.weekly import weekly_generation

        yield weekly_generation(PROJECT)


def test_runs_one_at_a_time_with_retries(dag: Any) -> None:
    settings = load_settings(PROJECT / "params.yaml").airflow
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    stage = dag.get_task("rl")
    assert stage.retries == settings.retries
    assert stage.retry_exponential_backoff
    assert stage.retry_delay == timedelta(seconds=settings.retry_delay_seconds)


def test_what_waits_for_days_outlasts_any_number_of_lost_connections(
    dag: Any, home: Path, tmp_path: Path
) -> None:
    watch = dag.get_task("watch_ab")
    root = build_workspace(tmp_path, {"label.annotator": "label_studio", "airflow.schedule": None})
    settings = load_settings(root / "params.yaml")
    found = parse(home, root, "1")["dag"]["dag"]
    retries = {task["__var"]["task_id"]: task["__var"].get("retries") for task in found["tasks"]}
    longest = max(settings.ab.duration_minutes / 60, settings.label.label_studio.wait_hours)
    # The pauses grow, to an hour at most.
    assert retries["watch_ab"] == retries["wait_for_labels"] == watch.retries > 2 * longest
    assert watch.max_retry_delay == timedelta(hours=1)
    assert retries["rl"] in (None, settings.airflow.retries)
    of_a_test = ("start_ab_test", "analyze_ab", "record_promotion_decision", "promote", "rollback")
    assert {retries[task] for task in of_a_test} == {watch.retries}, (
        "an outage leaves no arm unwatched or served"
    )


@pytest.mark.parametrize("task", ["approve_launch", "approve_promotion"])
def test_a_gate_takes_silence_for_no_and_renders_nothing(dag: Any, task: str) -> None:
    gate = dag.get_task(task)
    hours = load_settings(PROJECT / "params.yaml").airflow.approval_timeout_hours
    assert gate.response_timeout == timedelta(hours=hours)
    assert gate.defaults == ["Reject"]
    assert gate.retries == 0
    assert tuple(gate.template_fields) == ()


def filled_in(dag: Any, values: dict[str, Any]) -> dict[str, Any]:
    """What a run gets from the trigger form."""
    params = deepcopy(dag.params)
    for name, value in values.items():
        params[name] = value
    return params.validate()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"generation": "g0012", "seed": 3, "force": ["rl", "gate"]},
        {"generation": ""},
        {"generation": None, "seed": None},
    ],
)
def test_the_trigger_form_takes(dag: Any, values: dict[str, Any]) -> None:
    assert filled_in(dag, values) == {"generation": None, "seed": None, "force": []} | values


@pytest.mark.parametrize(
    "values", [{"generation": "12"}, {"generation": "g0001; rm"}, {"seed": -1}, {"force": ["no_stage"]}]
)
def test_the_trigger_form_refuses(dag: Any, values: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        filled_in(dag, values)


class TaskInstance:
    """XComs of a run, as a task sees them."""

    def __init__(self, found: dict[tuple[str, str], Any]) -> None:
        self.found = found
        self.pushed: dict[str, Any] = {}

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        return self.found.get((task_ids, key))

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize(
    ("user", "options", "decision", "follows"),
    [
        ({"id": "1", "name": "ada"}, ["Approve"], "approve", "launch"),
        ({"id": "1", "name": "ada"}, ["Reject"], "reject", "rollback"),
        (None, ["Reject"], "timeout", "rollback"),
        (None, ["Approve"], "timeout", "rollback"),
        ({"id": "1", "name": "ada"}, [], "reject", "rollback"),
        ({"id": "1", "name": "ada"}, ["Approve", "Reject"], "reject", "rollback"),
    ],
)
def test_only_a_persons_yes_is_a_yes(
    dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user, options, decision: str, follows: str
) -> None:
    from dataclasses import asdict

    from flywheel_dag import answers

    from flywheel_tasks.online.approval import launch_request, registry_of
    from tests.online.conftest import write_model, write_verdict

    build_workspace(tmp_path)
    write_model(tmp_path)
    write_verdict(tmp_path)
    monkeypatch.setenv("FLYWHEEL_ROOT", str(tmp_path))
    at = datetime(2026, 11, 9, tzinfo=UTC)
    shown = asdict(launch_request(tmp_path))
    answer = {"chosen_options": options, "params_input": {}, "responded_at": at, "responded_by_user": user}
    ti = TaskInstance({("approve_launch", "shown"): shown, ("approve_launch", "return_value"): answer})
    assert answers.record_decision(ti, "approve_launch", "launch") == follows
    (recorded,) = registry_of(tmp_path).state().approvals
    assert (recorded.decision, recorded.at) == (decision, at)
    assert recorded.by == ("ada (1)" if user else "nobody (no answer in time)")
    assert ("reason" in ti.pushed) == (follows == "rollback")


@pytest.mark.parametrize(
    ("said", "by", "of", "asked", "stands"),
    [
        ("approve", "ada", "this", 7, True),
        ("reject", "ada", "this", 7, True),
        ("timeout", "ada", "this", 7, False),
        ("approve", "policy: approval.local", "this", 7, False),
        ("approve", "ada", "another verdict", 7, False),
        ("approve", "ada", "this", 9, False),
        ("approve", "ada", "this", None, False),
    ],
)
def test_silence_does_not_undo_what_a_person_has_answered_by_command(
    dag: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Any,
    by: str,
    of: str,
    asked: Any,
    stands: bool,
) -> None:
    """They answered on the eighth; the question was put on the day ``asked``, and not answered by the tenth."""
    from dataclasses import asdict

    from flywheel_dag import answers

    from flywheel_tasks.online.approval import launch_request, registry_of
    from tests.online.conftest import write_model, write_verdict

    build_workspace(tmp_path)
    write_model(tmp_path)
    write_verdict(tmp_path)
    monkeypatch.setenv("FLYWHEEL_ROOT", str(tmp_path))
    request, registry = launch_request(tmp_path), registry_of(tmp_path)
    verdict = request.evidence_digest if of == "this" else "sha256:" + "0" * 64
    registry.record_approval(
        "launch",
        generation=request.generation,
        model_digest=request.model_digest,
        verdict_digest=verdict,
        decision=said,
        by=by,
        at=datetime(2026, 11, 8, tzinfo=UTC),
    )
    late = datetime(2026, 11, 10, tzinfo=UTC)
    answer = {"chosen_options": ["Reject"], "responded_at": late, "responded_by_user": None}
    found: dict[tuple[str, str], Any] = {("approve_launch", "shown"): asdict(request)}
    found["approve_launch", "return_value"] = answer
    if asked is not None:
        found["approve_launch", "asked_at"] = datetime(2026, 11, asked, tzinfo=UTC).isoformat()
    ti = TaskInstance(found)
    follows = "launch" if stands and said == "approve" else "rollback"
    assert answers.record_decision(ti, "approve_launch", "launch") == follows
    assert len(registry.state().approvals) == (1 if stands else 2)
    assert (
        ti.pushed.get("reason")
        == {
            "launch": None,
            "rollback": "launch not approved: "
            + ("reject by ada" if stands else "timeout by nobody (no answer in time)"),
        }[follows]
    )


@pytest.mark.parametrize("missing", ["shown", "return_value"])
def test_an_answer_that_nobody_gave_is_no_answer(dag: Any, missing: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException
    from flywheel_dag import answers

    found = {("approve_launch", "shown"): {"x": 1}, ("approve_launch", "return_value"): {"x": 1}}
    del found["approve_launch", missing]
    with pytest.raises(AirflowFailException, match="has left no answer"):
        answers.record_decision(TaskInstance(found), "approve_launch", "launch")
