"""What the runner asks of DVC: pushes are tried again, a force is done once, only the run's own inputs are read."""

import json
import shutil

import pytest
import yaml

from flywheel_tasks.pipeline import dvc_locks, lineage, runner

MISSING = """WARNING: Some of the cache files do not exist neither locally nor on remote. Missing cache files:
md5: 0123456789abcdef0123456789abcdef.dir
Everything is up to date.
ERROR: failed to pull data from the cloud - Checkout failed for following targets:
{}
Is your cache up to date?
<https://error.dvc.org/missing-files>"""
UNREACHABLE = """ERROR: failed to connect to s3 (bucket/x/files/md5) - Could not connect to the endpoint URL
ERROR: failed to pull data from the cloud - 1 files failed to download"""


class Dvc:
    """In DVC's place: notes its commands, fails at some, brings files that hold their hash, and writes dvc.lock.

    Attributes:
        called: the commands.
        fails: beginnings of commands that fail, each once.
        has: hashes of what is in its cache.
        output: of a pull of what is not there.
    """

    def __init__(self, root):
        self.root, self.called, self.fails, self.has, self.output = root, [], [], {"a", "b"}, UNREACHABLE
        self.write(part("a"))
        (root / "data/first").mkdir(parents=True)
        (root / "data/first/hash").write_text("a")

    def write(self, *parts):
        document = {"schema": "2.0", "stages": dict(zip(("first", "second"), parts, strict=False))}
        (self.root / "dvc.lock").write_text(yaml.safe_dump(document))

    def _checkout(self, target):
        (out,) = yaml.safe_load((self.root / target).read_text())["outs"]
        if out["md5"] not in self.has:
            raise runner.StageFailedError("dvc ended with 1", self.output.format(target.removesuffix(".dvc")))
        place = (self.root / target).with_name(out["path"])
        place.mkdir()
        (place / "hash").write_text(out["md5"])

    def __call__(self, root, *words, quiet=False):
        command = " ".join(words)
        self.called.append(command)
        for beginning in self.fails:
            if command.startswith(beginning):
                self.fails.remove(beginning)
                raise runner.StageFailedError(f"dvc {command} ended with 1")
        if words[0] in ("checkout", "pull"):
            self._checkout(words[-1])
        elif words[0] == "repro":
            first = lineage.part_of(root, "first")
            read = (root / "data/first/hash").read_text()
            self.write(first, {"deps": [{"path": "data/first", "md5": read}], "outs": []})
        return ""


def part(md5):
    """What dvc.lock says of the first stage, which made what has this hash."""
    params = {"params.yaml": {"rate": 8e-05}}
    return {"cmd": "x", "params": params, "outs": [{"path": "data/first", "hash": "md5", "md5": md5}]}


def first(md5):
    return {"first": part(md5)}


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    fake = Dvc(tmp_path)
    monkeypatch.setattr(runner, "dvc", fake)
    fake.pauses = []
    monkeypatch.setattr(runner.time, "sleep", fake.pauses.append)
    return fake


BRING = "checkout --force inputs/brought/data/first.dvc"
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


def test_inputs_of_another_run_are_replaced_by_those_of_this_one_and_no_stage_runs_for_it(dvc):
    runner.run(dvc.root, "second", made=first("a"))
    assert dvc.called == [REPRO, PUSH], "they are right"
    dvc.called.clear()
    runner.run(dvc.root, "second", made=first("b"))
    assert dvc.called == [BRING, REPRO, PUSH]
    assert lineage.stage_hashes(dvc.root, "second", "deps") == {"data/first": "b"}
    assert lineage.part_of(dvc.root, "first") == part("b")
    assert not (dvc.root / "inputs/brought").exists()


def test_inputs_that_are_not_here_any_more_are_brought(dvc):
    shutil.rmtree(dvc.root / "data")
    runner.run(dvc.root, "second", made=first("a"))
    assert dvc.called == [BRING, REPRO, PUSH]


@pytest.mark.parametrize("left", ["", "stages:\n  first:\n    outs:\n    - {", "schema: '2.0'", None])
def test_a_lock_file_that_a_kill_cut_short_is_put_aside_and_its_stages_are_restored(dvc, left):
    (dvc.root / "dvc.lock").unlink()
    if left is not None:
        (dvc.root / "dvc.lock").write_text(left)
    runner.run(dvc.root, "second", made=first("b"))
    assert dvc.called == [BRING, REPRO, PUSH]
    assert left is None or (dvc.root / "dvc.lock.broken").read_text() == left


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (MISSING, runner.LostDataError, "^data/first: DVC has the files neither here nor in its remote; "),
        (UNREACHABLE, runner.StageFailedError, "^data/first: not brought now: dvc ended with 1"),
    ],
)
def test_inputs_that_cannot_be_had_are_an_error_nothing_runs_and_nothing_is_changed(
    dvc, output, error, words
):
    before = (dvc.root / "dvc.lock").read_bytes()
    dvc.output = output
    with pytest.raises(runner.StageFailedError, match=words) as raised:
        runner.run(dvc.root, "second", made=first("c"))
    assert type(raised.value) is error
    assert dvc.called == [BRING, BRING.replace("checkout", "pull")]
    assert (dvc.root / "dvc.lock").read_bytes() == before
    assert (dvc.root / "data/first/hash").read_text() == "a"
    dvc.has.add("c")  # the remote is back
    runner.run(dvc.root, "second", made=first("c"))
    assert lineage.stage_hashes(dvc.root, "second", "deps") == {"data/first": "c"}


def test_what_was_being_brought_at_a_kill_is_brought_again(dvc, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lineage, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.run(dvc.root, "second", made=first("b"))
    assert lineage.part_of(dvc.root, "first") == part("a")
    dvc.called.clear()
    runner.run(dvc.root, "second", made=first("b"))
    assert dvc.called == [BRING, REPRO, PUSH]


def test_nobody_is_forgotten_while_inputs_are_brought(dvc, monkeypatch):
    """The rows of a user would come back with them."""
    plain, alone = dvc.__call__, []

    def looking(root, *words, quiet=False):
        with dvc_locks.alone(root) as nobody_else:
            alone.append((words[0], nobody_else))
        return plain(root, *words, quiet=quiet)

    monkeypatch.setattr(runner, "dvc", looking)
    runner.run(dvc.root, "second", made=first("b"))
    assert alone[0] == ("checkout", False)


def test_an_input_that_was_changed_by_hand_is_noticed(dvc):
    (dvc.root / "data/first/hash").write_text("by hand")
    with pytest.raises(runner.OtherDataError, match="second has read data/first, which was changed"):
        runner.run(dvc.root, "second", made=first("a"))
    assert dvc.called == [REPRO], "it is not pushed"


@pytest.mark.parametrize(
    ("output", "lost"), [(MISSING.format("inputs/champion"), True), (UNREACHABLE, False)]
)
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


STAGES = """
stages:
  first: {cmd: "echo x >> runs && mkdir data && cp -r chance data/first", params: [rate], outs: [data/first]}
  second: {cmd: "cp data/first/by data/second", deps: [data/first], outs: [data/second]}
"""


@pytest.mark.slow
def test_with_a_real_dvc_a_forced_output_of_elsewhere_is_read_and_a_lost_file_starts_no_stage(tmp_path):
    """Two checkouts with one remote; what the first stage makes is a matter of chance."""
    here, elsewhere, remote = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "remote"
    (here / "chance").mkdir(parents=True)
    (here / "chance/by").write_text("A")
    (here / "dvc.yaml").write_text(STAGES)
    (here / "params.yaml").write_text("rate: 8.0e-5\n")
    runner.dvc(here, "init", "--no-scm", "-q", quiet=True)
    runner.dvc(here, "remote", "add", "-q", "-d", "storage", str(remote), quiet=True)
    runner.run(here, "first")
    shutil.copytree(here, elsewhere)
    shutil.rmtree(elsewhere / "data")
    (elsewhere / "chance/by").write_text("B")
    runner.run(elsewhere, "first", force_once="run-1")
    made = {"first": json.loads(json.dumps(lineage.part_of(elsewhere, "first")))}
    assert lineage.part_of(here, "first") != made["first"]

    runner.run(here, "second", made=made)
    assert (here / "data/second").read_text() == "B"
    assert lineage.part_of(here, "first") == made["first"]
    assert (here / "runs").read_text() == "x\n"
    assert "first" not in runner.dvc(here, "status"), "a local run finds it made"

    (kept,) = [path for path in (remote / "files").rglob("*") if path.is_file() and path.read_text() == "B"]
    kept.rename(tmp_path / "away")  # a file of the folder, not its listing
    shutil.rmtree(here / "data/first")
    shutil.rmtree(here / ".dvc/cache/files")
    before = (here / "dvc.lock").read_text()
    with pytest.raises(runner.StageFailedError, match=r"^data/first: not brought now") as failed:
        runner.run(here, "second", made=made)
    assert not isinstance(failed.value, runner.LostDataError), "it may be there at the next try"
    assert (here / "runs").read_text() == "x\n"
    assert (here / "dvc.lock").read_text() == before
    (tmp_path / "away").rename(kept)
    runner.run(here, "second", made=made)
    assert (here / "data/first/by").read_text() == "B"
