"""A stage that runs in a fork of a server: as if it ran by itself, and no longer than its client."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flywheel_tasks.pipeline import runner, warm
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.leftovers import living_dvc
from flywheel_tasks.pipeline.runner import environment

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
# A package that no other part of the command imports; it says in which process it was imported.
PACKAGE = "import os\nPID = os.getpid()\n"
THREADED = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
STAGES = """
import os, sys, time

import large

from flywheel_tasks.pipeline.graph import GraphError


def told(io):
    print(sys.stdin.read(), large.PID, os.getpid(), os.getppid())
    print("aside", file=sys.stderr)


def bad(io):
    raise GraphError("row 7 breaks a rule")


def slow(io):
    (io.root / "pid").write_text(str(os.getpid()))
    time.sleep(0 if (io.root / "fast").exists() else 60)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    body = (
        "  {0}: {{cmd: exec flywheel stage {0}, deps: [demo_stages.py], meta: {{run: 'demo_stages:{0}'}}}}\n"
    )
    lines = [body.format(name) for name in ("told", "bad", "slow")]
    lines.append("  alone: {cmd: x, deps: [threaded_stage.py], meta: {run: 'threaded_stage:run'}}\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n" + "".join(lines))
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    (tmp_path / "demo_stages.py").write_text(STAGES)
    (tmp_path / "large.py").write_text(PACKAGE)
    (tmp_path / "threaded.py").write_text(THREADED)
    (tmp_path / "threaded_stage.py").write_text("import threaded\ndef run(io):\n    print('ran')\n")
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{tmp_path}")
    monkeypatch.setenv(warm.SETTING, "large,threaded")
    return tmp_path


def _start(root, variables, stage, **changed):
    return subprocess.Popen(
        [sys.executable, "-m", "flywheel_tasks.cli", "stage", stage],
        cwd=root,
        env=environment() | variables | changed,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(*arguments, **changed):
    process = _start(*arguments, **changed)
    out, error = process.communicate("hello")
    return process, out.split(), error


def _gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_as_if_it_ran_by_itself(workspace):
    with warm.server(workspace, environment()) as variables:
        process, (said, imported, pid, parent), error = _run(workspace, variables, "told")
        assert (process.returncode, said, error) == (0, "hello", "aside\n")
        assert imported == parent != pid, "the server imported the package"
        server = psutil.Process(int(parent))
        assert (server.ppid(), server.num_threads()) == (os.getpid(), 1)

        process, _, error = _run(workspace, variables, "bad")
        assert (process.returncode, error) == (1, "error: row 7 breaks a rule\n")

        code = (workspace / "demo_stages.py").read_text().replace("aside", "changed since")
        (workspace / "demo_stages.py").write_text(code)
        _, (_, again, *_), error = _run(workspace, variables, "told")
        assert (again, error) == (imported, "changed since\n"), (
            "the code that is there, the package of before"
        )

        process, (said, imported, pid, *_), error = _run(workspace, variables, "told", OMP_NUM_THREADS="7")
        assert (process.returncode, said) == (0, "hello")
        assert imported == pid == str(process.pid), (
            "a library may read another environment when it is imported"
        )
        assert "OMP_NUM_THREADS" in error
        assert "7" not in error
    assert _gone(int(parent))
    assert not Path(variables["FLYWHEEL_WARM_SERVER"]).parent.exists()


def test_no_fork_of_a_process_with_threads(workspace):
    with warm.server(workspace, environment()) as variables:
        process, out, error = _run(workspace, variables, "alone")
    assert (process.returncode, out) == (0, ["ran"])
    assert "1 threads were started by imports" in error


@pytest.mark.parametrize("victim", ["worker", "client", "server", "client by SIGTERM"])
def test_killed(workspace, victim):
    with warm.server(workspace, environment()) as variables:
        client = _start(workspace, variables, "slow")
        _wait(lambda: (workspace / "pid").exists() and (workspace / "pid").read_text())
        worker = int((workspace / "pid").read_text())
        server = psutil.Process(worker).ppid()
        pids = {"worker": worker, "server": server}
        number = signal.SIGTERM if "SIGTERM" in victim else signal.SIGKILL
        os.kill(pids.get(victim, client.pid), number)
        _, error = client.communicate(timeout=30)
        _wait(lambda: _gone(worker))
        assert _gone(server) == (victim == "server")
        expected = {
            "worker": (128 + signal.SIGKILL, "error: stage slow was killed by SIGKILL\n"),
            "client": (-signal.SIGKILL, ""),
            "server": (1, "error: stage slow: the process it was forked from was killed\n"),
            "client by SIGTERM": (128 + signal.SIGTERM, "error: stage slow was killed by SIGTERM\n"),
        }
        assert (client.returncode, error) == expected[victim]


def test_through_dvc(workspace, capsys):
    """A stage that DVC starts finds the server, dies with DVC, and does not run twice at once afterwards."""
    subprocess.run(["git", "init", "-q"], cwd=workspace, check=True)
    runner.dvc(workspace, "init", "-q", quiet=True)
    code = "import sys; from pathlib import Path; from flywheel_tasks.pipeline import runner;"
    code += "runner.reproduce(Path(sys.argv[1]), 'slow')"
    driver = subprocess.Popen([sys.executable, "-c", code, str(workspace)], stdout=subprocess.DEVNULL)
    _wait(lambda: (workspace / "pid").exists() and (workspace / "pid").read_text())
    worker = psutil.Process(int((workspace / "pid").read_text()))
    assert worker.parent().ppid() == driver.pid, "DVC did not start it, the driver's server did"
    (dvc,) = living_dvc(workspace)
    os.kill(dvc, signal.SIGKILL)
    assert driver.wait(timeout=30) != 0
    _wait(lambda: _gone(worker.pid))
    (workspace / "fast").touch()
    runner.reproduce(workspace, "slow")
    capsys.readouterr()
    runner.reproduce(workspace, "slow")
    assert "flywheel stage slow" not in capsys.readouterr().out, "it had not ended well"


def test_off(workspace, monkeypatch):
    monkeypatch.setenv(warm.SETTING, "0")
    with warm.server(workspace, environment()) as variables:
        assert variables == {}


def test_nothing_is_imported_that_a_stage_does_not_name():
    graph = load_graph(PROJECT / "dvc.yaml")
    packages = warm._packages({warm.SETTING: "1"})
    assert not warm._packages({}), "it is asked for"
    found = {name: warm.imports_of(graph[name], PROJECT, packages) for name in ("rl", "ingest", "gate")}
    assert "GRPOConfig" in found["rl"]["trl"]
    assert not any(module.startswith("flywheel_tasks") for module in found["rl"])
    assert found["ingest"] == found["gate"] == {}
