"""Several users are forgotten at once: as one by one, with one search, and each is told of."""

import re
import shutil

import pytest
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.pipeline import trained_on
from flywheel_tasks.privacy import forget
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import IdentityError
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
    file.write_text(f"{GONE}\n\nnobody [bold]here[/bold]\n")
    output = call(workspace, OTHER, "--from", str(file))
    assert "3 users are on the list" in output
    assert "Nothing of 1 of them was found" in output
    assert "  nobody [bold]here[/bold]\n" in output
    assert f"  {GONE}" not in output
    assert re.findall(r"policy_train +│ (\d+) +│", output) == ["2"]


def test_ids_come_from_standard_input(workspace):
    words = ["forget", "--from", "-", "--root", str(workspace), "--dry-run"]
    done = CliRunner().invoke(app, words, input=f"{GONE}\n{OTHER}\n")
    assert "2 users (dry run: nothing is changed)" in done.output


@pytest.mark.parametrize(("words", "why"), [((), "nobody to forget"), ((GONE, "--hashed"), "is not a hash")])
def test_nobody_or_no_hash_is_refused(workspace, words, why):
    with pytest.raises(IdentityError, match=why):
        call(workspace, *words)


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
