"""Airflow's four services on one machine: settings, start, and an end that leaves nothing behind."""

import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer")
USER = "admin"
_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 20
_LEFT_SECONDS = 5
_START_SECONDS = 300
_LOG_TAIL = 30


class AirflowStartError(RuntimeError):
    """Airflow did not come up, or one of its services ended; the message has the last lines of its log."""


@dataclass(frozen=True)
class Place:
    """Where an Airflow of one machine lives.

    Attributes:
        root: the workspace; its ``dags/`` are served.
        home: AIRFLOW_HOME: database, configuration, logs, password file.
        port: of the API server and UI, on 127.0.0.1 only.
        overrides: more Airflow settings, by the names of their environment variables.
    """

    root: Path
    home: Path
    port: int
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def passwords(self) -> Path:
        """The file that holds the login's password."""
        return self.home / "passwords.json"

    def environment(self) -> dict[str, str]:
        """Environment of every service, task and ``airflow`` command."""
        scripts = str(Path(sys.executable).parent)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "FLYWHEEL_ROOT": str(self.root),
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.root / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.passwords),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            **self.overrides,
        }


def make_password(place: Place) -> None:
    """Write a random password for the login, readable by its owner only; one that exists is kept.

    Airflow would make one itself, and print it into its log.
    """
    if place.passwords.exists():
        return
    place.home.mkdir(parents=True, exist_ok=True, mode=0o700)  # the database in it holds secrets too
    with open(
        place.passwords, "x", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="utf-8"
    ) as file:
        json.dump({USER: secrets.token_urlsafe(16)}, file)


def airflow(place: Place, *arguments: str) -> None:
    """Run one ``airflow`` command.

    Raises:
        AirflowStartError: it failed.
    """
    command = [sys.executable, "-m", "airflow", *arguments]
    done = subprocess.run(
        command, env=place.environment(), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise AirflowStartError(
            f"airflow {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}"
        )


def prepare(place: Place) -> None:
    """Make the database and the password; repeated, it brings them up to date."""
    make_password(place)
    airflow(place, "db", "migrate")


def _call(place: Place, method: str, path: str, body: object, token: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(  # noqa: S310 - http to 127.0.0.1
        place.url + path, json.dumps(body).encode(), headers, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
        return json.load(answer)


def log_in(place: Place) -> str:
    """A token of the login, for the REST API."""
    password = json.loads(place.passwords.read_text(encoding="utf-8"))[USER]
    return str(_call(place, "POST", "/auth/token", {"username": USER, "password": password})["access_token"])


def set_gpu_pool(place: Place, slots: int) -> None:
    """Make the pool of stages that need the GPU, or change its size (the API server must be up)."""
    pool = {"name": "gpu", "slots": slots, "description": "Stages that need the GPU"}
    body = {"actions": [{"action": "create", "entities": [pool], "action_on_existence": "overwrite"}]}
    _call(place, "PATCH", "/api/v2/pools", body, log_in(place))


def _end_with_parent() -> None:
    """Ask the kernel (Linux) to end this process in good order when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Services:
    """The running services, each in a session of its own, so that all it starts can be found and ended.

    Args:
        place: where they live.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, service: str) -> Path:
        """A service's log file."""
        return self.place.home / "logs" / f"{service}.log"

    def start(self) -> None:
        """Start all services, without waiting for them."""
        extra = {"scheduler": ["--skip-serve-logs"], "triggerer": ["--skip-serve-logs"]}
        for service in SERVICES:
            self.log(service).parent.mkdir(parents=True, exist_ok=True)
            with self.log(service).open("ab") as log:
                self._running[service] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", service, *extra.get(service, [])],
                    env=self.place.environment(),
                    cwd=self.place.root,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )

    def check(self) -> None:
        """Raise AirflowStartError if a service has ended."""
        for service, process in self._running.items():
            if process.poll() is not None:
                lines = self.log(service).read_text(encoding="utf-8", errors="replace").splitlines()
                shown = "\n".join(lines[-_LOG_TAIL:])
                raise AirflowStartError(f"airflow {service} ended with {process.returncode}:\n{shown}")

    def wait_until_healthy(self, seconds: float = _START_SECONDS) -> None:
        """Wait until the API says that every service is up.

        Raises:
            AirflowStartError: one ended, or it took longer.
        """
        deadline = time.monotonic() + seconds
        while not self._healthy():
            self.check()
            if time.monotonic() > deadline:
                raise AirflowStartError(
                    f"Airflow is not up after {seconds:.0f} s; see {self.log('api-server')}"
                )
            time.sleep(0.5)

    def _healthy(self) -> bool:
        url = f"{self.place.url}/api/v2/monitor/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a constant http address
                parts = json.load(answer)
        except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError):
            return False
        names = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return all(parts.get(name, {}).get("status") == "healthy" for name in names)

    def stop(self) -> None:
        """End the services in good order, then whatever is left of their sessions at once."""
        sessions = {process.pid for process in self._running.values()}
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_left(sessions)
        self._running.clear()

    def _end_left(self, sessions: set[int]) -> None:
        """End what outlived its service (a task has a supervisor and children of its own)."""
        left = _members(sessions)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(left, timeout=_LEFT_SECONDS)
        for process in {*alive, *_members(sessions)}:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _members(sessions: set[int]) -> list[psutil.Process]:
    """Living processes of sessions; a task has a process group of its own, but not a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
