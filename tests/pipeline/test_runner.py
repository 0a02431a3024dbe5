"""What the runner asks of DVC: pushes are tried again, a force is done once, only the run's own inputs are read."""

import pytest
import yaml

from flywheel_tasks.pipeline import runner

GRAPH = """
stages:
  first: {cmd: x, outs: [data/first], meta: {run: "m:f"}}
  second: {cmd: x, deps: [data/first], outs: [data/second], meta: {run: "m:f"}}
"""


class Dvc:
    """In DVC's place: notes its commands, fails at some, and writes dvc.lock.

    Attributes:
        called: the commands.
        fails: beginnings of commands that fail, each once.
        has: DVC's hash of data/first: here, and after it was restored.
    """

    def __init__(self, root, here, restored):
        self.root, self.called, self.fails, self.restored = root, [], [], restored
        self.write(here)

    def write(self, first, read=None):
        stages = {"first": {"outs": [{"path": "data/first", "md5": first}]}}
        if read is not None:
            stages["second"] = {"deps": [{"path": "data/first", "md5": read}], "outs": []}
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
        self.first = first

    def __call__(self, root, *words, quiet=False):
        command = " ".join(words)
        self.called.append(command)
        for beginning in self.fails:
            if command.startswith(beginning):
                self.fails.remove(beginning)
                raise runner.StageFailedError(f"dvc {command} ended with 1")
        if command.startswith("repro --single-item --pull first"):
            self.write(self.restored)
        elif command.startswith("repro"):
            self.write(self.first, self.first)
        return ""


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "data/first").mkdir(parents=True)
    fake = Dvc(tmp_path, "a", "b")
    monkeypatch.setattr(runner, "dvc", fake)
    fake.pauses = []
    monkeypatch.setattr(runner.time, "sleep", fake.pauses.append)
    return fake


REPRO, FORCED, PUSH = (
    "repro --single-item second",
    "repro --single-item --force second",
    "push --run-cache second",
)


def test_a_push_is_tried_again_with_growing_pauses(dvc):
    dvc.fails = ["push", "push"]
    runner.run(dvc.root, "second")
    assert dvc.called == [REPRO, PUSH, PUSH, PUSH]
    assert dvc.pauses == sorted(dvc.pauses)
    assert len(dvc.pauses) == 2
    dvc.fails = ["push"] * 20
    with pytest.raises(runner.StageFailedError, match="push"):
        runner.run(dvc.root, "second")


def test_a_forced_stage_is_not_trained_again_when_its_push_failed(dvc):
    dvc.fails = ["push"] * 4
    with pytest.raises(runner.StageFailedError, match="push"):
        runner.run(dvc.root, "second", force_once="run-1")
    assert dvc.called[0] == FORCED
    dvc.called.clear()
    runner.run(dvc.root, "second", force_once="run-1")
    assert dvc.called == [REPRO, PUSH]
    dvc.called.clear()
    runner.run(dvc.root, "second", force_once="run-2")
    assert dvc.called == [FORCED, PUSH], "another run forces it anew"


def test_a_force_that_did_not_finish_is_done_again(dvc):
    dvc.fails = ["repro"]
    with pytest.raises(runner.StageFailedError, match="repro"):
        runner.run(dvc.root, "second", force_once="run-1")
    dvc.called.clear()
    runner.run(dvc.root, "second", force_once="run-1")
    assert dvc.called == [FORCED, PUSH]


def test_inputs_of_another_run_are_replaced_by_those_of_this_one(dvc):
    runner.run(dvc.root, "second", made={"data/first": "a"})
    assert dvc.called == [REPRO, PUSH], "they are right"
    dvc.called.clear()
    runner.run(dvc.root, "second", made={"data/first": "b"})
    assert dvc.called == ["repro --single-item --pull first", REPRO, PUSH]


@pytest.mark.parametrize("left", ["", "stages:\n  first:\n    outs:\n    - {", "schema: '2.0'"])
def test_a_lock_file_that_a_kill_cut_short_is_put_aside_and_its_stages_are_restored(dvc, left):
    (dvc.root / "dvc.lock").write_text(left)
    runner.run(dvc.root, "second", made={"data/first": "b"})
    assert dvc.called == ["repro --single-item --pull first", REPRO, PUSH]
    assert (dvc.root / "dvc.lock.broken").read_text() == left


def test_inputs_that_cannot_be_had_are_an_error_and_nothing_runs(dvc):
    with pytest.raises(runner.OtherDataError, match="data/first, but not as this run made it"):
        runner.run(dvc.root, "second", made={"data/first": "c"})
    assert dvc.called == ["repro --single-item --pull first"]


def test_an_input_that_was_changed_by_hand_is_noticed(dvc, monkeypatch):
    plain = dvc.__call__

    def changed(root, *words, quiet=False):
        plain(root, *words, quiet=quiet)
        if words[0] == "repro":
            dvc.write("a", read="by hand")

    monkeypatch.setattr(runner, "dvc", changed)
    with pytest.raises(runner.OtherDataError, match="second has read data/first, which was changed"):
        runner.run(dvc.root, "second", made={"data/first": "a"})
    assert dvc.called == [REPRO], "it is not pushed"


MISSING = """WARNING: Some of the cache files do not exist neither locally nor on remote. Missing cache files:
md5: 0123456789abcdef0123456789abcdef.dir
Everything is up to date.
ERROR: failed to pull data from the cloud - Checkout failed for following targets:
inputs/champion
Is your cache up to date?"""
UNREACHABLE = """ERROR: failed to connect to s3 (bucket/x/files/md5) - Could not connect to the endpoint URL
ERROR: failed to pull data from the cloud - 1 files failed to download"""


@pytest.mark.parametrize(("output", "lost"), [(MISSING, True), (UNREACHABLE, False)])
def test_a_loss_is_told_from_a_remote_that_cannot_be_reached(tmp_path, monkeypatch, output, lost):
    """By what DVC 3.67 says."""

    def fails(root, *words, quiet=False):
        raise runner.StageFailedError(f"dvc {words[0]} ended with 1", output)

    monkeypatch.setattr(runner, "dvc", fails)
    with pytest.raises(runner.StageFailedError) as failure:
        runner.bring(tmp_path, "inputs/champion.dvc")
    assert isinstance(failure.value, runner.LostDataError) == lost


@pytest.mark.slow
def test_a_real_dvc_says_that_files_are_lost(tmp_path):
    runner.dvc(tmp_path, "init", "--no-scm", "-q", quiet=True)
    (tmp_path / "inputs").mkdir()
    out = {"md5": "0123456789abcdef0123456789abcdef.dir", "hash": "md5", "path": "champion"}
    (tmp_path / "inputs/champion.dvc").write_text(yaml.safe_dump({"outs": [out]}))
    with pytest.raises(runner.LostDataError, match="neither here nor in its remote"):
        runner.bring(tmp_path, "inputs/champion.dvc")  # there is no remote
    (tmp_path / "remote").mkdir()
    runner.dvc(tmp_path, "remote", "add", "-q", "-d", "storage", str(tmp_path / "remote"), quiet=True)
    with pytest.raises(runner.LostDataError):
        runner.bring(tmp_path, "inputs/champion.dvc")
