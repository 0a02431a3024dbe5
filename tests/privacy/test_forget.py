"""A user is forgotten, end to end: from logs through the stages to splits, and again after it."""

import fcntl
import gzip
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from filelock import FileLock, Timeout
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.contracts.load import load_contracts
from flywheel_tasks.conversations.schemas import PROMPTS
from flywheel_tasks.curation.tables import DUPLICATES
from flywheel_tasks.pipeline import dvc_locks, trained_on
from flywheel_tasks.pipeline.generation_ids import BusyError
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.privacy import forget
from flywheel_tasks.serving.turns import LoggedTurn, TurnIndex, owner_of
from flywheel_tasks.storage.documents import read_json, read_jsonl, write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, IdentityError, UserKey, pin_users
from flywheel_tasks.traffic.logs import LogsError, pin_logs
from tests.conftest import build_workspace
from tests.curation.rows import prompt
from tests.traffic.sample import card, line, message, signal, write_log

PROJECT = Path(__file__).parents[2]
SECRET = "0123456789abcdef" * 4
KEY = UserKey(SECRET)
USERS = [f"person-{n}" for n in range(12)]
GONE = USERS[3]
NOW = datetime(2026, 11, 3, tzinfo=UTC)


def talk(number: int):
    """A conversation of two exchanges of one user, with a signal, and a line that is broken."""
    of = {"user_id": USERS[number], "conversation_id": f"c{number}"}

    def said(place, role, parent):
        ids = {"event_id": f"e{number}-{place}", "message_id": f"m{number}-{place}"}
        above = None if parent is None else f"m{number}-{parent}"
        return message(place + 1, role, None, **of, **ids, parent_id=above, text=f"words {place} of {number}")

    yield said(0, "user", None)
    yield said(1, "assistant", 0)
    yield said(2, "user", 1)
    yield said(3, "assistant", 2)
    yield signal(1, 0, **of, event_id=f"e{number}-s", message_id=f"m{number}-1")
    yield {**said(4, "user", 3), "role": "robot"}


def run_stages(root):
    write_json(pin_logs("data/logs", root), root / "inputs/logs.json")
    for stage in ("ingest", "validate", "assemble"):
        run_stage(stage, root)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)


@pytest.fixture
def workspace(tmp_path, assembled):
    """A workspace after assembly of the test's own."""
    return shutil.copytree(assembled, tmp_path / "w")


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    """A workspace after assembly, with tables of annotation that name tasks and prompts only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLYWHEEL_USER_KEY", SECRET)
        return build(tmp_path_factory.mktemp("forget") / "w")


def build(root):
    shares = dict.fromkeys(trained_on.SPLITS, 0.2)
    build_workspace(
        root, {"logs.source": "files", "validate.max_quarantine_share": 0.5, "split.shares": shares}
    )
    events = [card(), *(event for number in range(len(USERS)) for event in talk(number))]
    write_log(root, map(line, events[:40]), "date=2026-11-02/a.jsonl")
    write_log(root, map(line, events[40:]), "date=2026-11-03/b.jsonl.gz")
    write_json(pin_users(KEY.fingerprint, set()), root / "inputs/users.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")
    run_stages(root)
    tasks = [
        {"task_id": f"t{n}", "prompt_id": f"p{n}", "user_id": KEY.hashed(user)}
        for n, user in enumerate(USERS)
    ]
    write_jsonl(tasks, root / "data/annotation/batch.jsonl")
    write_jsonl([{"task_id": f"t{n}", "answer": n} for n in range(12)], root / "data/annotation/labels.jsonl")
    repeats = [{**dict.fromkeys(DUPLICATES.names), "dropped_id": f"p{n}", "kept_id": "p7"} for n in range(6)]
    repeats.append({**repeats[0], "dropped_id": "p0", "kept_id": "p3", "kept_text": "words"})
    write_rows(repeats, DUPLICATES, root / "data/curated/duplicates.parquet")
    for split in trained_on.SPLITS:
        rows = [{**prompt(f"p{n}"), "user_id": KEY.hashed(user), "turn": 0} for n, user in enumerate(USERS)]
        write_rows(rows if split == "policy_train" else [], PROMPTS, root / f"data/split/{split}.parquet")
    (root / "models/policy").mkdir(parents=True)
    (root / "models/policy/weights").write_text("weights")
    return root


def everything(root):
    """All rows of all tables, by path."""
    found = {}
    for path in sorted((root / "data").rglob("*")):
        if path.suffix == ".parquet":
            found[str(path.relative_to(root))] = read_rows(path)
        elif path.suffix == ".jsonl" and "logs" not in path.parts:
            found[str(path.relative_to(root))] = list(read_jsonl(path))
    return found


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def call(root, *words):
    done = CliRunner().invoke(app, ["forget", *words, "--root", str(root)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def theirs(row):
    text = str(row)
    number = USERS.index(GONE)
    return KEY.hashed(GONE) in text or any(
        f"'{mark}{number}" in text.replace("-", "'") for mark in ("e", "m", "c", "t", "p")
    )


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


def test_raw_logs_are_rewritten_only_when_asked(workspace):
    def raw():
        data = (workspace / "data/logs/date=2026-11-02/a.jsonl").read_bytes()
        return (
            data + gzip.decompress((workspace / "data/logs/date=2026-11-03/b.jsonl.gz").read_bytes())
        ).splitlines()

    before = raw()
    call(workspace, GONE)
    assert raw() == before
    call(workspace, KEY.hashed(GONE), "--hashed", "--raw-logs")
    assert raw() == [one for one in before if b'"person-3"' not in one]
    assert len(raw()) == len(before) - 6


def test_raw_logs_that_write_the_id_under_an_old_name_are_rewritten_too(workspace):
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    settings["ingest"]["rename"] = {"author": "user_id"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    log = workspace / "data/logs/date=2026-11-02/a.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"user_id"', b'"author"'))
    before = log.read_bytes().splitlines()
    call(workspace, GONE, "--raw-logs")
    kept = [one for one in before if b'"person-3"' not in one]
    assert log.read_bytes().splitlines() == kept != before


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


def test_models_that_a_killed_run_found_are_listed_by_the_next(workspace, monkeypatch):
    """The splits that they were found by are clean by then."""

    def killed(root):
        raise KeyboardInterrupt

    assert "workspace" in call(workspace, GONE, "--dry-run")
    monkeypatch.setattr(forget, "drop_kept", killed)
    CliRunner().invoke(app, ["forget", GONE, "--root", str(workspace)])
    assert trained_on.checkpoints_of(workspace, KEY.hashed(GONE)) == []
    monkeypatch.undo()
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    assert "policy_train" in call(workspace, GONE).split("Models trained on")[1]
    assert not list((workspace / ".flywheel/forget").iterdir())


def test_raw_logs_that_are_cut_or_gone_keep_nothing_from_being_forgotten(workspace):
    log = workspace / "data/logs/date=2026-11-03/b.jsonl.gz"
    log.write_bytes(log.read_bytes()[:-8])
    output = call(workspace, GONE, "--raw-logs")
    assert "date=2026-11-03/b.jsonl.gz" in output.split("cannot be read to their end")[1]
    assert "policy_train" in output.split("Models trained on")[1]
    assert not any(theirs(row) for rows in everything(workspace).values() for row in rows)
    shutil.rmtree(workspace / "data/logs")
    (workspace / "data/logs").mkdir()
    assert "Raw logs that hold the user (kept; --raw-logs rewrites them): none" in call(workspace, USERS[4])


def test_logs_that_cannot_be_listed_are_an_error_before_anything_is_changed(workspace):
    (workspace / "data/logs/astray.jsonl").write_text("{}")
    before = contents(workspace / "data")
    with pytest.raises(LogsError, match=r"astray\.jsonl is not where logs belong"):
        call(workspace, GONE)
    assert contents(workspace / "data") == before
    assert read_json(workspace / "inputs/users.json")["forgotten"] == []


def test_a_search_of_the_logs_that_fails_finds_the_user_listed_and_no_row_gone(workspace, monkeypatch):
    before = contents(workspace / "data")

    def fails(*_):
        raise LogsError("s3://chat: connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(forget_logs, "find", fails)
        with pytest.raises(LogsError, match="connection lost"):
            call(workspace, GONE)
    assert contents(workspace / "data") == before
    assert read_json(workspace / "inputs/users.json")["forgotten"] == [KEY.hashed(GONE)]
    assert "policy_train" in call(workspace, GONE).split("Models trained on")[1]
    assert not any(theirs(row) for rows in everything(workspace).values() for row in rows)


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
    found = trained_on.checkpoints_of(workspace, KEY.hashed(GONE))
    assert [(one.generation, one.why) for one in found] == [
        ("g0001", "policy_train"),
        ("g0002", "starts from g0001"),
        ("g0003", "starts from g0002"),
    ]
    assert trained_on.checkpoints_of(workspace, KEY.hashed("nobody")) == []
    output = call(workspace, GONE)
    assert "policy_train" in output
    assert trained_on.checkpoints_of(workspace, KEY.hashed(GONE)) == found, "also when the tables are clean"


def test_what_a_gateway_has_not_sealed_and_its_index_of_turns_go_too(workspace):
    """A dead gateway's file is sealed and rewritten, its torn end deleted; a living one's is named."""
    served = workspace / "data/served/date=2026-11-03"
    served.mkdir(parents=True)
    rows = [{**row, "user_id": user} for user in (GONE, USERS[4]) for row in [message(1, "user", None)]]
    (served / ".open-dead.jsonl").write_bytes(b"".join(map(line, rows)))
    (served / ".torn-dead.jsonl").write_bytes(line(rows[0])[:-9])
    index = TurnIndex(workspace / ".flywheel/serve/turns.sqlite")
    index.add(
        [LoggedTurn(f"m-{user}", "c", None, "user", owner_of(user), b"x", NOW) for user in (GONE, USERS[4])]
    )
    living = served / ".open-living.jsonl"
    living.write_bytes(line(rows[0]))
    with living.open("rb+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        output = " ".join(call(workspace, GONE, "--raw-logs").split())
    assert "a running gateway has logged since its last segment" in output
    assert "Turns removed from the gateway's index, which is without texts: 1" in output
    assert sorted(path.name for path in served.iterdir()) == [".open-living.jsonl", "dead.jsonl"]
    assert (served / "dead.jsonl").read_bytes() == line(rows[1])
    assert (index.by_id(f"m-{GONE}"), index.by_id(f"m-{USERS[4]}") is None) == (None, False)
    output = " ".join(call(workspace, KEY.hashed(GONE), "--hashed", "--raw-logs").split())
    assert "digests of who said what" in output
    assert "running gateway" not in output
    index.close()
    assert all(GONE.encode() not in path.read_bytes() for path in served.iterdir())
