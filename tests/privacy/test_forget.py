"""A user is forgotten, end to end: from logs through the stages to splits, and again after it."""

import re
import shutil
from pathlib import Path

import orjson
import pytest
import yaml
from filelock import FileLock, Timeout
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.pipeline import dvc_locks, reward_model_pin, trained_on
from flywheel_tasks.pipeline.generation_ids import BusyError
from flywheel_tasks.privacy import forget, stored_copies
from flywheel_tasks.report.approval import BADGES
from flywheel_tasks.serving.keys import add_key, keys_path
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json, write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, IdentityError, UserKey
from tests.annotation.studio_stand_in import LEGACY, StandIn, serve
from tests.privacy.forgetting import GONE, KEY, SECRET, call, contents, everything, run_stages, theirs

PROJECT = Path(__file__).parents[2]


def test_after_forgetting_no_table_has_a_row_and_all_others_are_as_they_were(workspace):
    before = everything(workspace)
    assert any(theirs(row) for row in before["data/ingested/quarantine.parquet"])
    assert any(theirs(row) for row in before["data/annotation/labels.jsonl"])
    output = call(workspace, GONE)
    assert everything(workspace) == {
        path: [row for row in rows if not theirs(row)] for path, rows in before.items()
    }
    assert KEY.hashed(GONE) in output
    assert "data/annotation/labels.jsonl" in output
    assert "date=2026-11-02/a.jsonl" in output
    assert read_json(workspace / "inputs/users.json")["forgotten"] == [KEY.hashed(GONE)]


def test_rows_of_every_table_that_tells_of_people_are_known_by_one_of_their_ids():
    """A new table with another name for such an id would keep a user's rows in silence."""
    of_nobody = {"annotators", "card_sheets", "clusters", "sample"}
    contracts = load_contracts(PROJECT / "data_contracts")
    known = {"user_id", *forget._KIND}
    assert {table for table, of in contracts.items() if not known & set(of.columns)} == of_nobody


def test_a_later_run_from_the_same_logs_does_not_bring_them_back(workspace):
    before = everything(workspace)
    call(workspace, GONE)
    run_stages(workspace)
    assert read_json(workspace / "metrics/ingest.json")["forgotten"] == 6
    after = everything(workspace)
    for name in ("ingested/messages", "validated/messages", "conversations/prompts"):
        path = f"data/{name}.parquet"
        assert after[path] == [row for row in before[path] if not theirs(row)], path


def test_a_dry_run_shows_the_same_and_changes_nothing(workspace):
    before = contents(workspace)
    output = call(workspace, GONE, "--dry-run", "--raw-logs")
    assert "would be removed" in output
    assert contents(workspace) == before


def locks(root):
    folder = root / ".flywheel/locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


OTHER = UserKey(SECRET + "x")


@pytest.mark.parametrize("words", [(GONE,), (GONE, "--dry-run"), (OTHER.hashed(GONE), "--hashed")])
def test_another_key_than_the_workspaces_is_refused_before_anything_is_changed(workspace, monkeypatch, words):
    before = contents(workspace)
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET + "x")
    with pytest.raises(IdentityError, match=f"{KEY.fingerprint}.*{OTHER.fingerprint}.*set FLYWHEEL") as error:
        call(workspace, *words)
    assert SECRET not in str(error.value)
    assert contents(workspace) == before


def test_the_key_is_that_of_the_newest_generation_where_none_is_pinned(workspace):
    (workspace / "inputs/users.json").unlink()
    call(workspace, GONE, "--dry-run")
    bundle = b'{"user_key": "%s", "generation": {"champion": {"model": "base"}}}'
    for generation, fingerprint in (("g0001", KEY.fingerprint), ("g0002", DEMO_FINGERPRINT)):
        registry = open_registry("registry", workspace)
        registry.put_generation(generation, "inputs.json", bundle % fingerprint.encode())
        if generation == "g0001":
            call(workspace, GONE, "--dry-run")
    with pytest.raises(IdentityError, match=r"g0002 hashes user ids with .*demo's published key"):
        call(workspace, GONE)


@pytest.mark.parametrize(
    ("lock", "why"),
    [
        (lambda root: FileLock(locks(root) / "split.lock"), "stage split is at work"),
        (lambda root: FileLock(locks(root) / "generation.lock"), "another generation is brought"),
        (dvc_locks.at_work, "DVC is at work"),
    ],
)
def test_nobody_is_forgotten_while_tables_are_written(workspace, lock, why):
    with lock(workspace):
        before = everything(workspace)
        with pytest.raises(BusyError, match=f"{why}, and would write the user back"):
            call(workspace, GONE)
        assert everything(workspace) == before
        assert read_json(workspace / "inputs/users.json")["forgotten"] == []
        call(workspace, GONE, "--dry-run")
    call(workspace, GONE)
    assert everything(workspace) != before


def test_nobody_writes_tables_while_a_user_is_forgotten(workspace, monkeypatch):
    held = []

    def tried(path, ids):
        with dvc_locks.alone(workspace) as alone:
            held.append(not alone)
        with pytest.raises(Timeout):
            FileLock(locks(workspace) / "ingest.lock", timeout=0).acquire()

    monkeypatch.setattr(forget, "remove", tried)
    call(workspace, GONE)
    assert set(held) == {True}


def test_labels_in_the_folder_of_the_tables_keep_no_table_from_being_cleaned(workspace):
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    settings["label"]["location"] = "data/{generation}"
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    write_jsonl([{"task_id": f"t{n}"} for n in range(12)], workspace / "data/g0001/mine.jsonl")
    before = everything(workspace)
    output = call(workspace, GONE)
    assert everything(workspace) == {
        path: [row for row in rows if not theirs(row)] for path, rows in before.items()
    }
    assert "g0001/mine.jsonl" in output.split("Delivered labels")[1]


def test_what_killed_runs_were_writing_goes_too(workspace):
    left = workspace / "data/split/.prompts.parquet.tmp-4711"
    folder = workspace / "data/.conversations.tmp-12"
    folder.mkdir(parents=True)
    for path in (left, folder / "prompts.parquet"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"anna")
    call(workspace, "--dry-run", GONE)
    assert left.exists()
    call(workspace, GONE)
    assert not left.exists()
    assert not folder.exists()


def test_a_table_that_cannot_be_read_is_named_and_the_next_run_goes_on(workspace):
    torn = workspace / "data/mine/torn.jsonl"
    torn.parent.mkdir()
    torn.write_bytes(b'{"user_id": "x"}\n{"user')
    result = CliRunner().invoke(app, ["forget", GONE, "--root", str(workspace)])
    assert result.exit_code != 0
    assert "torn.jsonl:2: cannot be read" in str(result.exception)
    torn.unlink()
    call(workspace, GONE)
    assert not any(theirs(row) for rows in everything(workspace).values() for row in rows)


def test_a_kill_between_two_tables_is_made_good_by_running_again(workspace, monkeypatch):
    before = everything(workspace)
    remove, left = forget.remove, iter(range(1))

    def killed(path, ids):
        if path.name == "labels.jsonl":
            raise KeyboardInterrupt
        remove(path, ids)

    monkeypatch.setattr(forget, "remove", killed)
    CliRunner().invoke(app, ["forget", GONE, "--root", str(workspace)])
    assert not any(theirs(row) for row in everything(workspace)["data/annotation/batch.jsonl"])
    assert any(theirs(row) for row in everything(workspace)["data/annotation/labels.jsonl"])
    monkeypatch.setattr(forget, "remove", remove)
    call(workspace, GONE)
    assert everything(workspace) == {
        path: [row for row in rows if not theirs(row)] for path, rows in before.items()
    }
    assert not list((workspace / ".flywheel/forget").iterdir())
    assert next(left) == 0


def models_of(workspace, user):
    return trained_on.checkpoints_of(workspace, [user])[user]


def test_models_that_a_killed_run_found_are_listed_by_the_next(workspace, monkeypatch):
    """The splits that they were found by are clean by then."""

    def killed(root):
        raise KeyboardInterrupt

    assert "workspace" in call(workspace, GONE, "--dry-run")
    monkeypatch.setattr(forget, "drop_kept", killed)
    CliRunner().invoke(app, ["forget", GONE, "--root", str(workspace)])
    assert models_of(workspace, KEY.hashed(GONE)) == []
    monkeypatch.undo()
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    assert "policy_train" in call(workspace, GONE).split("Models trained on")[1]
    assert not list((workspace / ".flywheel/forget").iterdir())


def test_tables_of_earlier_runs_go_from_the_cache(workspace):
    cache = workspace / ".dvc/cache/files/md5"
    for name, source in (
        ("aa/1", "data/ingested/messages.parquet"),
        ("bb/2", "data/annotation/labels.jsonl"),
    ):
        (cache / name).parent.mkdir(parents=True)
        shutil.copy(workspace / source, cache / name)
    (cache / "aa/3").write_text("weights of a model")
    (cache / "bb/4.dir").write_text("[]")
    assert re.search(r"cache +│ +2 +│ +0 +│ +0", call(workspace, GONE))
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["3", "4.dir"]


def test_models_trained_on_the_user_and_on_top_of_those_are_listed(workspace):
    registry = open_registry("registry", workspace)
    trained_on.record(workspace, "g0001")
    trained_on.record(workspace, "g0001")
    for generation, champion in (
        ("g0001", "base"),
        ("g0002", "g0001"),
        ("g0003", "g0002"),
        ("g0004", "base"),
    ):
        bundle = b'{"generation": {"champion": {"model": "%s"}}}' % champion.encode()
        registry.put_generation(generation, "inputs.json", bundle)
    found = models_of(workspace, KEY.hashed(GONE))
    assert [(one.generation, one.why) for one in found] == [
        ("g0001", "policy_train"),
        ("g0002", "starts from g0001"),
        ("g0003", "starts from g0002"),
    ]
    assert models_of(workspace, KEY.hashed("nobody")) == []
    output = call(workspace, GONE)
    assert "policy_train" in output
    assert "models named above" in output
    assert "models named above" not in call(workspace, "nobody")
    assert models_of(workspace, KEY.hashed(GONE)) == found, "also when the tables are clean"


def test_reward_models_that_go_on_from_those_of_a_launch_that_was_rolled_back_are_listed(
    workspace, monkeypatch
):
    registry = open_registry("registry", workspace)
    trained_on.record(workspace, "g0002")
    bundle = orjson.dumps({"generation": {"champion": {"model": "g0001"}}})
    for generation, start in (("g0003", "g0002"), ("g0004", None)):
        registry.put_generation(generation, "inputs.json", bundle)
        write_json(
            {"start": {"generation": start, "reason": None}}, workspace / "metrics/train_pointwise_rm.json"
        )
        for split in (workspace / "data/split").iterdir():
            split.unlink()
        trained_on.record(workspace, generation)
    found = models_of(workspace, KEY.hashed(GONE))
    assert [(one.generation, one.why) for one in found] == [
        ("g0002", "policy_train"),
        ("g0003", "starts from g0002"),
    ]
    pinned = {"generation": "g0003", "models": {"pointwise": {"digest": "sha256:0"}}, "split": None}
    (workspace / "inputs/earlier_pointwise_rm").mkdir(parents=True)
    for generation, users, known in (
        ("g0003", [KEY.hashed(GONE)], True),
        ("g0004", [KEY.hashed(GONE)], None),
        ("g0003", [KEY.hashed("nobody")], None),
        ("g0003", [], None),
    ):
        monkeypatch.setattr(reward_model_pin, "_place_all", lambda models, place: None)
        reward_model_pin.pin(workspace, {**pinned, "generation": generation}, print, users)
        assert read_json(workspace / reward_model_pin.PIN).get("knows_forgotten") == known


def test_a_user_of_whom_nothing_is_found_is_no_quiet_success(workspace):
    found = call(workspace, GONE, "--dry-run")
    assert "Nothing of this user was found" not in found
    output = call(workspace, f"{GONE} ")
    assert "Nothing of this user was found" in output
    assert "Upper and lower case and spaces count" in output
    assert "Nothing of this user was found" not in call(workspace, f"{GONE} "), "they are on the list by now"


def test_what_still_names_the_user_is_told(workspace):
    state = workspace / load_settings(workspace / "params.yaml").serve.state
    theirs_, _ = add_key(keys_path(state), "a phone", "user", GONE)
    other, _ = add_key(keys_path(state), "another", "user", "somebody-else")
    text = (workspace / "params.yaml").read_text()
    settings = yaml.safe_load(text)
    settings["label"]["annotator"] = "files"
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    tasks = {row["task_id"] for row in everything(workspace)["data/annotation/batch.jsonl"] if theirs(row)}
    output = call(workspace, GONE)
    assert f"flywheel serve keys revoke {theirs_.id}" in output
    assert other.id not in output
    assert tasks
    assert all(re.search(rf"\b{task}\b", output) for task in tasks)
    assert "examples in questions that Airflow asked" in output


@pytest.mark.parametrize("reached", [True, False])
def test_their_tasks_are_deleted_in_label_studio_or_named(workspace, monkeypatch, reached):
    state = StandIn()
    tasks = [row["task_id"] for row in everything(workspace)["data/annotation/batch.jsonl"]]
    gone = {row["task_id"] for row in everything(workspace)["data/annotation/batch.jsonl"] if theirs(row)}
    state.projects = {1: {"id": 1, "title": "flywheel g0001 x"}, 2: {"id": 2, "title": "another team's"}}
    for number, task in enumerate([*tasks, *gone]):
        project = 1 if number < len(tasks) else 2
        state.tasks[number] = {"id": number, "project": project, "data": {"task_id": task}, "annotations": []}
    server = serve(state)
    monkeypatch.setattr("flywheel_tasks.annotation.studio._ATTEMPTS", 1)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    settings["label"]["annotator"] = "label_studio"
    port = server.server_port if reached else 9
    settings["label"]["label_studio"]["url"] = f"http://127.0.0.1:{port}"
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    call(workspace, GONE, "--dry-run")
    assert len(state.tasks) == len(tasks) + len(gone)
    output = call(workspace, GONE)
    server.shutdown()
    server.server_close()
    assert gone
    left = [row["data"]["task_id"] for row in state.tasks.values() if row["project"] == 1]
    if reached:
        assert left == [task for task in tasks if task not in gone]
        assert "Label Studio, which" not in output
    else:
        assert left == tasks
        assert "ConnectError" in output
        assert "flywheel annotation delete" in output
        assert all(re.search(rf"\b{task}\b", output) for task in gone)
    assert len(state.tasks) == len(left) + len(gone), "nothing of other teams is deleted"
    assert not any(theirs(row) for row in everything(workspace)["data/annotation/batch.jsonl"])


@pytest.mark.parametrize("badge", BADGES.values())
def test_the_approvers_text_is_known_by_its_beginning(badge):
    """It quotes users; in DVC's cache it has no name."""
    assert f"# {badge}".lower().encode().startswith(stored_copies._PAGES)
