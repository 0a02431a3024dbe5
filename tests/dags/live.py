"""A real Airflow for tests: started on a free port in a home of its own, driven over its REST API."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from flywheel_tasks.cli.airflow_services import Place, Services, log_in, prepare, set_gpu_pool
from tests.ports import free_port

DAG = "weekly_generation"
# Shorter waits between looks; what is looked at, and every check, stays as it is in use.
QUICK = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3",
}
FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


def processes_with(home: Path) -> list[str]:
    """Command lines of all processes that were started for a home, tasks and what they started included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(home) and process.pid != os.getpid():
                found.append(" ".join(process.cmdline()))
    return [words for words in found if words]  # one that has ended has no words


class LiveAirflow:
    """A started Airflow.

    Args:
        place: where it lives.
        services: the running services.
        client: logged in.
        pause: seconds between two looks of :meth:`until`. Each costs the API server what a task could use.
    """

    def __init__(self, place: Place, services: Services, client: httpx.Client, *, pause: float = 0.3) -> None:
        self.place = place
        self.services = services
        self.client = client
        self.pause = pause

    @classmethod
    @contextmanager
    def started(
        cls,
        root: Path,
        home: Path,
        *,
        gpu_pool_slots: int = 1,
        overrides: Mapping[str, str] | None = None,
        pause: float = 0.3,
    ) -> Iterator["LiveAirflow"]:
        """Start all services for a workspace, log in, and stop everything at the end.

        Args:
            root: the workspace, with dvc.yaml, params.yaml and dags/.
            home: AIRFLOW_HOME.
            gpu_pool_slots: of the pool ``gpu``.
            overrides: environment of services and tasks besides :data:`QUICK`.
            pause: seconds between two looks of :meth:`until`.
        """
        place = Place(root, home, free_port(), {**QUICK, **(overrides or {})})
        services = Services(place)
        try:
            prepare(place)
            services.start()
            services.wait_until_healthy()
            set_gpu_pool(place, gpu_pool_slots)
            with httpx.Client(base_url=place.url, timeout=30) as client:
                client.headers["Authorization"] = f"Bearer {log_in(place)}"
                yield cls(place, services, client, pause=pause)
        finally:
            services.stop()
        assert not (left := processes_with(home)), f"left behind: {left}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One REST call under /api/v2; its JSON answer."""
        answer = self.client.request(method, f"/api/v2{path}", json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def until(self, what: str, look: Callable[[], Any], seconds: float) -> Any:
        """Look until the result is true; fail, with the services' state, after some seconds."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            self.services.check()
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(self.pause)
        return found

    def ready(self, seconds: float = 60) -> None:
        """Wait until the DAG is parsed, and unpause it."""

        def parsed() -> bool:
            answer = self.client.get(f"/api/v2/dags/{DAG}")
            errors = self.call("GET", "/importErrors")["import_errors"]
            assert not errors, errors[0]["stack_trace"]
            return answer.is_success

        self.until("the DAG is parsed", parsed, seconds)
        self.call("PATCH", f"/dags/{DAG}", {"is_paused": False})

    def trigger(self, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run; returns its id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.call("POST", f"/dags/{DAG}/dagRuns", body)["dag_run_id"])

    def run_state(self, run: str) -> str:
        """State of a run."""
        return str(self.call("GET", f"/dags/{DAG}/dagRuns/{run}")["state"])

    def states(self, run: str) -> dict[str, str | None]:
        """State of each task of a run."""
        found = self.call("GET", f"/dags/{DAG}/dagRuns/{run}/taskInstances?limit=200")["task_instances"]
        return {item["task_id"]: item["state"] for item in found}

    def wait_for_state(self, run: str, task: str, state: str, seconds: float) -> None:
        """Wait until a task is in a state; fail at once, with its log, if a task fails first."""

        def look() -> bool:
            states = self.states(run)
            failed = [name for name, found in states.items() if found == "failed" and state != "failed"]
            assert not failed, f"{failed[0]} failed:\n{self.log(run, failed[0])}"
            assert states.get(task) == state or states.get(task) not in FINISHED, (task, states)
            return states.get(task) == state

        self.until(f"{task} is {state}", look, seconds)

    def wait_for_end(self, run: str, seconds: float) -> str:
        """Wait until a run is over; returns its state."""
        self.until(f"run {run} ends", lambda: self.run_state(run) in ("success", "failed"), seconds)
        return self.run_state(run)

    def _hitl(self, run: str, task: str) -> str:
        return f"/dags/{DAG}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"

    def asked(self, run: str) -> list[str]:
        """Tasks of a run that have asked a person."""
        found = self.call("GET", f"/dags/{DAG}/dagRuns/{run}/hitlDetails")["hitl_details"]
        return sorted(item["task_instance"]["task_id"] for item in found)

    def question(self, run: str, task: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until a task asks and can be answered; returns its question as the UI shows it.

        The scheduler takes the end of the asking process for a failure of the task if the answer is there
        first (Airflow 3.3.2), so this waits until it has seen that end.
        """
        self.wait_for_state(run, task, "awaiting_input", seconds)
        ended = re.compile(
            rf"Received executor event with state success .*task_id='{task}', run_id='{re.escape(run)}'"
        )
        self.until(f"{task}'s process has ended", lambda: ended.search(self.scheduler_log()), 30)
        return self.question_now(run, task)

    def scheduler_log(self) -> str:
        """What the scheduler has written so far."""
        return self.services.log("scheduler").read_text(encoding="utf-8", errors="replace")

    def question_now(self, run: str, task: str) -> dict[str, Any]:
        """A task's question as the UI shows it now, whatever the task's state."""
        return dict(self.call("GET", self._hitl(run, task)))

    def answer(self, run: str, task: str, option: str) -> None:
        """Answer a question: Approve or Reject."""
        self.call("PATCH", self._hitl(run, task), {"chosen_options": [option], "params_input": {}})

    def clear(self, run: str, *tasks: str) -> None:
        """Clear tasks of a run, so that they run again."""
        body = {"dag_run_id": run, "task_ids": list(tasks), "dry_run": False, "only_failed": False}
        self.call("POST", f"/dags/{DAG}/clearTaskInstances", body)

    def mark_failed(self, run: str, task: str) -> None:
        """Mark a running task as failed, as a person does in the UI."""
        self.call("PATCH", f"/dags/{DAG}/dagRuns/{run}/taskInstances/{task}", {"new_state": "failed"})

    def versions(self) -> int:
        """How many versions of the DAG Airflow has stored."""
        return int(self.call("GET", f"/dags/{DAG}/dagVersions")["total_entries"])

    def log(self, run: str, task: str, attempt: int = 1) -> str:
        """A task's log."""
        path = f"/dags/{DAG}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}?full_content=true"
        content = self.call("GET", path)["content"]
        return "\n".join(
            str(line.get("event", line))
            + "".join(
                f"\n  {error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or []
            )
            if isinstance(line, dict)
            else str(line)
            for line in content
        )
