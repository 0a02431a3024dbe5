"""Nothing of a living DVC is touched, also where its process cannot be seen: as in another container."""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
from zc.lockfile import LockFile

from flywheel_tasks.pipeline import dvc_locks, leftovers, lineage, runner

RWLOCK = {"write": {"/opt/flywheel/models/policy": {"pid": 4_000_000, "cmd": "dvc repro rl"}}, "read": {}}
HALF = "schema: '2.0'\nstages:\n  rl:\n    outs:\n    - {"


@pytest.fixture
def workspace(tmp_path):
    """What a kill may leave, and what a living DVC may have: a lock by process id, and half of dvc.lock."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps(RWLOCK))
    (tmp_path / "dvc.lock").write_text(HALF)
    return tmp_path


def is_untouched(root):
    lock = root / "dvc.lock"
    return (
        json.loads((root / ".dvc/tmp/rwlock").read_text()) == RWLOCK
        and lock.exists()
        and lock.read_text() == HALF
    )


def is_cleared(root):
    write = json.loads((root / ".dvc/tmp/rwlock").read_text())["write"]
    return write == {} and not (root / "dvc.lock").exists() and (root / "dvc.lock.broken").read_text() == HALF


@contextmanager
def started(code, root):
    """Another process, which is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_is_left_of_the_dead_is_cleared(workspace):
    leftovers.clear_leftovers(workspace)
    assert is_cleared(workspace)


def test_another_process_that_works_keeps_all_until_it_dies(workspace):
    code = (
        "import sys, time; from pathlib import Path; from flywheel_tasks.pipeline import dvc_locks\n"
        "with dvc_locks.at_work(Path(sys.argv[1])):\n    print('here', flush=True); time.sleep(600)"
    )
    with started(code, workspace) as other:
        assert other.stdout.readline() == "here\n"
        leftovers.clear_leftovers(workspace)
        assert is_untouched(workspace)
    leftovers.clear_leftovers(workspace)
    assert is_cleared(workspace)


def test_a_campaigns_dvc_below_the_project_is_not_the_projects(workspace):
    campaign = workspace / "campaigns/demo/workspace"
    (campaign / ".dvc").mkdir(parents=True)
    (workspace / "data").mkdir()
    program = workspace / "dvc"
    program.write_text("import time; print('here', flush=True); time.sleep(600)")

    def dvc_in(folder):
        return subprocess.Popen([sys.executable, str(program)], cwd=folder, stdout=subprocess.PIPE, text=True)

    for folder, theirs, others in (
        (campaign, campaign, workspace),
        (workspace / "data", workspace, campaign),
    ):
        with dvc_in(folder) as process:
            try:
                assert process.stdout.readline() == "here\n"
                assert leftovers.living_dvc(theirs) == [process.pid]
                assert leftovers.living_dvc(others) == []
            finally:
                process.kill()


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_a_dvc_that_is_writing_keeps_all_whoever_started_it(workspace, name):
    held = LockFile(str(workspace / ".dvc/tmp" / name))  # as DVC takes it
    leftovers.clear_leftovers(workspace)
    assert is_untouched(workspace)
    held.close()
    leftovers.clear_leftovers(workspace)
    assert is_cleared(workspace)


def test_the_runner_says_that_its_dvc_is_at_work(tmp_path, monkeypatch):
    found = []

    class Looking(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            with dvc_locks.alone(tmp_path) as alone:
                found.append(alone)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(runner.subprocess, "Popen", Looking)
    runner.dvc(tmp_path, "version", quiet=True)
    assert found == [False]
    with dvc_locks.alone(tmp_path) as alone:
        assert alone, "it has ended"


def test_dvc_lock_is_not_read_while_dvc_writes_it(workspace):
    (workspace / "dvc.lock").write_text("stages: {}")
    held = LockFile(str(workspace / ".dvc/tmp/lock"))
    code = "import sys; from pathlib import Path; from flywheel_tasks.pipeline import lineage\n"
    code += "print('asks', flush=True); print(list(lineage.dvc_outputs(Path(sys.argv[1]))))"
    with started(code, workspace) as reader:
        assert reader.stdout.readline() == "asks\n"
        (workspace / "dvc.lock").write_text("stages: {rl: {outs: [{path: models/policy, md5: a}]}}")
        held.close()
        assert reader.stdout.readline() == "['models/policy']\n"
    assert lineage.stage_hashes(workspace, "rl", "outs") == {"models/policy": "a"}
