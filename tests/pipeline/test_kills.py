"""Kills and leftovers against a real DVC: no second writer, nothing finished done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flywheel_tasks.pipeline import runner
from flywheel_tasks.pipeline.leftovers import clear_rwlock, living_dvc

pytestmark = pytest.mark.slow

DVC_YAML = """
stages:
  first:
    cmd: exec flywheel stage first
    params: [seed]
    outs: [out/first.txt]
    meta: {run: "demo_stages:first"}
  second:
    cmd: exec flywheel stage second
    deps: [out/first.txt]
    outs: [out/second.txt]
    meta: {run: "demo_stages:second"}
"""

STAGES = """
import os, time
from pathlib import Path

def _ran(name, io):
    with (io.root / "runs.log").open("a") as log:
        log.write(f"{name} {os.getpid()}\\n")

def first(io):
    _ran("first", io)
    io.out("out/first.txt").write_text("1")

def second(io):
    _ran("second", io)
    out = io.out("out/second.txt")
    with out.open("a") as file:
        for number in range(10):
            file.write(f"{os.getpid()}\\n")
            file.flush()
            time.sleep(0.05 if (io.root / "fast").exists() else 2.0)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The workspace before its first run, made once: git and DVC take seconds to start, and a copy is as good."""
    root = tmp_path_factory.mktemp("template")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    (root / "demo_stages.py").write_text(STAGES)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    runner.dvc(root, "init", "-q", quiet=True)
    return root


@pytest.fixture
def workspace(template, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)


def _start(root: Path) -> subprocess.Popen:
    code = "import sys; from pathlib import Path; from flywheel_tasks.pipeline import runner;"
    code += "runner.reproduce(Path(sys.argv[1]), 'second')"
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.DEVNULL)


def _runs(root: Path, name: str) -> list[int]:
    log = root / "runs.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.split()[0] == name]


def _wait(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("victim", ["driver", "dvc", "stage"])
def test_killed_anywhere_it_finishes_next_time(workspace, victim):
    driver = _start(workspace)
    _wait(lambda: _runs(workspace, "second"))
    stage_pid = _runs(workspace, "second")[0]
    dvc_pid = psutil.Process(stage_pid).ppid()
    assert living_dvc(workspace) == [dvc_pid]
    os.kill({"driver": driver.pid, "dvc": dvc_pid, "stage": stage_pid}[victim], signal.SIGKILL)
    driver.wait(timeout=30)
    assert driver.returncode != 0
    _wait(lambda: _gone(stage_pid) and _gone(dvc_pid), 15)
    assert not (workspace / "out/second.txt").exists()

    (workspace / "fast").touch()
    runner.reproduce(workspace, "second")
    assert len(_runs(workspace, "first")) == 1
    writers = set((workspace / "out/second.txt").read_text().split())
    assert writers == {str(_runs(workspace, "second")[-1])}
    runner.reproduce(workspace, "second")
    assert len(_runs(workspace, "second")) == 2


def test_a_lock_whose_process_id_belongs_to_another_program_now(workspace):
    (workspace / "fast").touch()
    info = {"pid": os.getpid(), "cmd": "dvc repro"}
    lock = workspace / ".dvc/tmp/rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {str(workspace / "out/first.txt"): info}, "read": {}}))
    runner.reproduce(workspace, "second")
    assert (workspace / "out/second.txt").exists()


def test_files_cut_short(workspace):
    (workspace / "fast").touch()
    runner.reproduce(workspace, "second")
    (workspace / ".dvc/tmp/rwlock").write_text('{"write": {"a')
    lock = workspace / "dvc.lock"
    lock.write_text(lock.read_text()[:-20] + "\n  - {")
    runner.reproduce(workspace, "second")
    assert _runs(workspace, "first") == _runs(workspace, "first")[:1]
    assert len(_runs(workspace, "second")) == 1, "the run cache should have restored it"


def test_a_living_owner_keeps_its_lock(workspace):
    driver = _start(workspace)
    try:
        _wait(lambda: _runs(workspace, "second"))
        before = json.loads((workspace / ".dvc/tmp/rwlock").read_text())
        clear_rwlock(workspace)
        assert json.loads((workspace / ".dvc/tmp/rwlock").read_text()) == before
        assert before["write"]
    finally:
        driver.kill()
        driver.wait()


def test_a_failure_repeats_nothing_that_was_shown_but_the_error(workspace, capfd):
    (workspace / "dvc.yaml").write_text(
        "stages: {a: {cmd: 'echo before; echo error: no such row; exit 3'}}\n"
    )
    with pytest.raises(runner.StageFailedError) as failure:
        runner.dvc(workspace, "repro", "a")
    assert str(failure.value) == "dvc repro a ended with 255:\nerror: no such row"
    assert "before\nerror: no such row" in capfd.readouterr().out
    with pytest.raises(runner.StageFailedError, match=r"ended with 255:\n(.*\n)*before\nerror: no such row"):
        runner.dvc(workspace, "repro", "a", quiet=True)
    assert not capfd.readouterr().out
