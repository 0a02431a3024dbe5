"""Which tasks of the DAG run after each decision, by Airflow's own trigger rules; what the tasks do is left out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, build_workspace
from tests.dags.small import DVC_YAML, OVERRIDES

pytestmark = pytest.mark.slow
RUN = """
import json, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from airflow.sdk.exceptions import AirflowFailException
from airflow.utils.db import initdb
from flywheel_dag import answers, approval, tasks, weekly
from flywheel_tasks.online.guardrails import Step

root, decided, case = Path(sys.argv[1]), {}, None

def check_gate():
    if "blocks" in case:
        raise AirflowFailException(case["blocks"])
    return case["check_gate"]

tasks.choose_generation = lambda: "g0001"
tasks.open_generation = tasks.start_ab_test = tasks.promote = tasks.rollback = lambda: None
tasks.run_stage = lambda stage: {}
tasks.check_gate = check_gate
tasks.watch_ab = lambda ti, run_id: Step(**case["watch_ab"])
tasks.analyze_ab = lambda: case["analyze_ab"]
approval.BoundApproval.execute = lambda self, context: None
answers.record_decision = lambda approval, then: case[approval]
initdb()
dag = weekly.weekly_generation(root)
for day, (name, case) in enumerate(json.loads(sys.argv[2]).items()):
    run = dag.test(logical_date=datetime(2026, 2, 1, tzinfo=UTC) + timedelta(days=day))
    decided[name] = {ti.task_id: str(ti.state) for ti in run.get_task_instances()} | {"run": str(run.state)}
print(json.dumps(decided))
"""
ANALYSED = {"watch_ab": {}, "analyze_ab": "approve_promotion", "approve_promotion": "promote"}
CASES: dict[str, dict[str, Any]] = {
    "a yes": {"check_gate": "approve_launch", "approve_launch": "launch", **ANALYSED},
    "a no": {"check_gate": "approve_launch", "approve_launch": "rollback"},
    "over before the launch": {"check_gate": "approve_launch", "approve_launch": None},
    "the test runs": {"check_gate": "launch", **ANALYSED},
    "promoted while it is watched": {"check_gate": "launch", "watch_ab": {"promoted": True}},
    "stopped while it is watched": {"check_gate": "launch", "watch_ab": {"stopped": "harm"}},
    "promoted before the analysis": {"check_gate": "launch", "watch_ab": {}, "analyze_ab": None},
    "a blocking gate": {"blocks": "win rate above 0.65"},
}
ASKED = {"approve_launch", "record_launch_decision"}
STARTED = {"launch", "start_ab_test", "watch_ab"}
DECIDED = {"analyze_ab", "approve_promotion", "record_promotion_decision", "promote"}
RAN = {
    "a yes": ASKED | STARTED | DECIDED,
    "a no": ASKED | {"rollback"},
    "over before the launch": ASKED,
    "the test runs": STARTED | DECIDED,
    "promoted while it is watched": STARTED,
    "stopped while it is watched": STARTED | {"rollback"},
    "promoted before the analysis": STARTED | {"analyze_ab"},
    "a blocking gate": set(),
}


def test_what_follows_each_decision(tmp_path: Path) -> None:
    root = build_workspace(tmp_path / "workspace", OVERRIDES)
    (root / "dvc.yaml").write_text(DVC_YAML)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root), json.dumps(CASES)],
        env={
            **kept,
            "AIRFLOW_HOME": str(tmp_path / "home"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "FLYWHEEL_ROOT": str(root),
            "PYTHONPATH": f"{PROJECT / 'dags'}:{PROJECT}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    later = ASKED | STARTED | DECIDED | {"rollback"}
    ran = {name: {task for task in later if states[task] == "success"} for name, states in found.items()}
    assert ran == RAN
    assert {name for name, states in found.items() if states["run"] != "success"} == {"a blocking gate"}
    assert {found["a blocking gate"][task] for task in later} == {"upstream_failed"}
