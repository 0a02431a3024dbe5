"""Several users are forgotten at once: as one by one, with one search, and each is told of."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.pipeline import trained_on
from flywheel_tasks.privacy import forget
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import IdentityError
from flywheel_tasks.traffic.log_store import LogsError
from tests.privacy.forgetting import GONE, KEY, USERS, call, everything

OTHER = next(user for user in USERS if user != GONE)


def logs_of(root):
    return {path.name: path.read_bytes() for path in sorted((root / "data/logs").rglob("*.jsonl*"))}


def test_two_at_once_leave_what_one_after_the_other_leaves(workspace, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(workspace, twin, symlinks=True)
    for user in (GONE, OTHER):
        call(twin, user, "--raw-logs")
    output = call(workspace, GONE, OTHER, "--raw-logs")
    assert everything(workspace) == everything(twin)
    assert logs_of(workspace) == logs_of(twin)
    assert "2 users are on the list of the forgotten" in output
    assert "Nothing of" not in output
    listed = {KEY.hashed(GONE), KEY.hashed(OTHER)}
    assert set(read_json(workspace / "inputs/users.json")["forgotten"]) == listed
    assert not list((workspace / ".flywheel/forget").iterdir())


def test_each_file_of_logs_is_searched_once(workspace, monkeypatch):
    searched = []
    find = forget_logs.find

    def noted(location, root, names, *more):
        searched.extend(names)
        return find(location, root, names, *more)

    monkeypatch.setattr(forget_logs, "find", noted)
    call(workspace, *USERS, "--dry-run")
    assert searched
    assert len(searched) == len(set(searched))


def test_ids_come_from_a_file_too_and_the_mistyped_one_is_named(workspace, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text(f"\ufeff{GONE}\n\nnobody [bold]here[/bold] :smile: \n")  # as some editors begin a file
    output = call(workspace, OTHER, "--from", str(file))
    assert "3 users are on the list" in output
    assert "Nothing of 1 of them was found" in output
    assert "  'nobody [bold]here[/bold] :smile: '\n" in output
    assert f"  {GONE!r}" not in output
    assert re.findall(r"policy_train +│ (\d+) +│", output) == ["2"]


def test_ids_come_from_standard_input(workspace):
    words = ["forget", "--from", "-", "--root", str(workspace), "--dry-run"]
    done = CliRunner().invoke(app, words, input=f"{GONE}\n{OTHER}\n")
    assert "2 users (dry run: nothing is changed)" in done.output


@pytest.mark.parametrize(("words", "why"), [((), "nobody to forget"), ((GONE, "--hashed"), "is not a hash")])
def test_nobody_or_no_hash_is_refused(workspace, words, why):
    with pytest.raises(IdentityError, match=why):
        call(workspace, *words)


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read: No such file"), (f"{GONE}\n".encode("utf-16"), "is not UTF-8 text")],
)
def test_a_file_of_ids_that_cannot_be_read_is_named_and_nothing_changes(workspace, tmp_path, content, why):
    file = tmp_path / "ids.txt"
    if content is not None:
        file.write_bytes(content)
    before = tree_digest(workspace / "data")
    with pytest.raises(IdentityError, match=rf"ids\.txt: {why}"):
        call(workspace, OTHER, "--from", str(file))
    assert tree_digest(workspace / "data") == before


def test_after_a_kill_each_of_them_can_be_forgotten_alone(workspace, monkeypatch):
    """What was learnt of one is not taken for the other's."""
    remove = forget.remove

    def killed(path, ids):
        if path.name == "labels.jsonl":
            raise KeyboardInterrupt
        remove(path, ids)

    before = everything(workspace)["data/annotation/labels.jsonl"]
    monkeypatch.setattr(forget, "remove", killed)
    CliRunner().invoke(app, ["forget", GONE, OTHER, "--root", str(workspace)])
    monkeypatch.setattr(forget, "remove", remove)
    assert everything(workspace)["data/annotation/labels.jsonl"] == before
    call(workspace, GONE)
    left = everything(workspace)["data/annotation/labels.jsonl"]
    assert 0 < len(before) - len(left) < len(before)
    assert [path.stem for path in (workspace / ".flywheel/forget").iterdir()] == [KEY.hashed(OTHER)]
    call(workspace, OTHER)
    assert len(everything(workspace)["data/annotation/labels.jsonl"]) < len(left)


def test_models_are_told_for_each(workspace):
    found = trained_on.checkpoints_of(workspace, [KEY.hashed(GONE), KEY.hashed("nobody")])
    assert [one.why for one in found[KEY.hashed(GONE)]] == ["policy_train"]
    assert found[KEY.hashed("nobody")] == []


def test_of_whom_rows_are_only_in_the_cache_something_was_found(workspace):
    """Of two in one table, too."""
    old = [KEY.hashed(name) for name in ("old-1", "old-2")]
    path = workspace / ".dvc/cache/files/md5/aa/1"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"user_id": user, "event_id": user}) + "\n" for user in old))
    assert "Nothing of" not in call(workspace, "old-1", "old-2")


def test_after_a_run_that_failed_the_mistyped_one_is_still_named(workspace, monkeypatch):
    rewrite = forget_logs.rewrite

    def busy(*given):
        raise LogsError("somebody writes to it")

    monkeypatch.setattr(forget_logs, "rewrite", busy)
    CliRunner().invoke(app, ["forget", GONE, "mistyped", "--raw-logs", "--root", str(workspace)])
    monkeypatch.setattr(forget_logs, "rewrite", rewrite)
    output = call(workspace, GONE, "mistyped", "--raw-logs")
    assert "Nothing of 1 of them was found" in output
    assert "'mistyped'" in output


def test_a_user_id_that_is_no_text_is_nobodys(workspace):
    path = workspace / ".dvc/cache/files/md5/aa/1"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"user_id": {"type": "string"}, "task_id": ["t"]}) + "\n")
    call(workspace, GONE)
    assert path.exists()


def test_what_a_look_reads_while_the_logs_are_rewritten_goes_too(workspace, monkeypatch):
    rewrite, kept = forget_logs.rewrite, workspace / ".flywheel/cache/looks/of a test/rows.parquet"

    def looked(*given):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("keys of the user's events")
        rewrite(*given)

    monkeypatch.setattr(forget_logs, "rewrite", looked)
    call(workspace, GONE, "--raw-logs")
    assert not kept.exists()
