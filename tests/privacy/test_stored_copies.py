"""Copies of a user's rows in DVC's cache, remotes and run cache, in delivered labels and on S3 are forgotten, too."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.pipeline.trained_on import SPLITS
from flywheel_tasks.privacy.forget import Ids
from flywheel_tasks.privacy.forget_labels import local_files, remove_labels
from flywheel_tasks.privacy.stored_copies import places
from flywheel_tasks.settings import SettingsError
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic.identity import UserKey, pin_users
from flywheel_tasks.traffic.log_store import open_logs
from flywheel_tasks.traffic.logs import pin_logs
from tests.curation.rows import prompt
from tests.traffic.sample import card, line, message, write_log

SECRET = "0123456789abcdef" * 4
KEY = UserKey(SECRET)
WHO, OTHER = KEY.hashed("anna"), KEY.hashed("ben")


def put(home: Path, data: bytes, ending: str = "") -> str:
    """An object of a DVC cache or remote; its digest."""
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    path = home / "files/md5" / digest[:2] / (digest[2:] + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest + ending


def stored(home: Path) -> dict[str, str]:
    """What an earlier generation left: its batch names the user, its labels only a task of theirs."""
    made = {
        "batch": put(home, json.dumps({"task_id": "t1", "user_id": WHO}).encode() + b"\n"),
        "labels": put(home, json.dumps({"task_id": "t1", "annotator": "mo"}).encode() + b"\n"),
        "others": put(home, json.dumps({"task_id": "t2", "user_id": OTHER}).encode() + b"\n"),
        "page": put(home, b"<!DOCTYPE html><p>I live in ...</p>"),
        "approval": put(home, b"# PASS WITH WARNINGS: generation g0001\n\n**Mae** was told: I live in ..."),
        "weights": put(home, b"\x08\x00weights of a model"),
        "document": put(home, b'{\n "a": 1\n}\n'),
    }
    listing = [{"md5": made["labels"], "relpath": "labels.jsonl"}]
    made["listing"] = put(home, json.dumps(listing).encode(), ".dir")
    made["clean"] = put(home, json.dumps([{"md5": made["others"], "relpath": "x"}]).encode(), ".dir")
    for name in ("listing", "clean"):
        run = home / "runs" / name[:2] / name / "entry"
        run.parent.mkdir(parents=True)
        run.write_text(yaml.safe_dump({"cmd": "x", "outs": [{"path": "data", "md5": made[name]}]}))
    return made


def left(home: Path) -> set[str]:
    return {
        path.parent.name + path.name if "runs" not in path.parts else path.parent.name
        for path in home.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def checkout(tmp_path, make_workspace, monkeypatch):
    """A DVC checkout with a remote in a folder, both with copies of an earlier generation."""
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = make_workspace(tmp_path / "w", {"logs.source": "files"})
    write_log(root, map(line, [card(), message(1, "user", None, user_id="anna"), message(3, "user", None)]))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, check=True)
    with (root / ".dvc/config").open("a") as config:
        config.write("['remote \"storage\"']\n    url = ../../remote\n")
    return root


GONE = ("batch", "labels", "page", "approval", "listing")
KEPT = ("others", "weights", "document", "clean")


def call(root, *words):
    done = CliRunner().invoke(app, ["forget", *words, "--root", str(root)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_copies_go_from_cache_and_remote_and_so_does_what_points_at_them(checkout):
    cache, remote = checkout / ".dvc/cache", checkout.parent / "remote"
    made = stored(cache)
    stored(remote)
    everything = left(remote)
    assert left(cache) >= everything
    output = call(checkout, "anna", "--dry-run", "--remotes")
    assert left(remote) == everything
    output = call(checkout, "anna")
    assert left(cache) == {made[name] for name in KEPT} | {"clean"}
    assert left(remote) == everything
    assert "DVC remote storage" in output
    assert "flywheel forget USER --remotes" in output
    output = call(checkout, "anna", "--remotes")
    assert left(remote) == {made[name] for name in KEPT} | {"clean"}
    assert "DVC remote storage" not in output
    assert not list((checkout / ".flywheel/forget").iterdir())


def test_a_remote_on_s3_is_looked_at_in_the_same_way(checkout, s3_server, monkeypatch):
    s3_server.create_bucket(Bucket="dvc")
    made = stored(checkout.parent / "copy")
    for path in (checkout.parent / "copy").rglob("*"):
        if path.is_file():
            name = path.relative_to(checkout.parent / "copy").as_posix()
            s3_server.put_object(Bucket="dvc", Key=f"store/{name}", Body=path.read_bytes())
    address = s3_server.meta.endpoint_url
    (checkout / ".dvc/config").write_text(
        f"[core]\n    no_scm = True\n['remote \"cloud\"']\n    url = s3://dvc/store\n    endpointurl = {address}\n"
    )
    (place,) = [place for place in places(checkout, remotes=True)[0] if place.name == "cloud"]
    ids = Ids(WHO)
    place.look(ids)
    owned = place.owned(ids)
    assert len(owned) == 2
    place.drop([*place.pointing_at(owned), *place.pages, *owned])
    keys = {item["Key"] for item in s3_server.list_objects_v2(Bucket="dvc")["Contents"]}
    assert {key.split("/")[-2] + key.split("/")[-1] for key in keys if "runs" not in key} == {
        made[name] for name in KEPT
    }
    assert [key for key in keys if "runs" in key] == ["store/runs/cl/clean/entry"]


def versioned(s3_server, bucket, *files):
    """A bucket that keeps every version, with files under ``live/``."""
    s3_server.create_bucket(Bucket=bucket)
    s3_server.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for name, data in files:
        s3_server.put_object(Bucket=bucket, Key=f"live/{name}", Body=data)


def test_a_bucket_with_versions_keeps_none_of_a_rewritten_log(s3_server, tmp_path):
    versioned(s3_server, "kept", ("a.jsonl", b"anna"), ("a.jsonl", b"anna again"), ("a.jsonl.gz", b"another"))
    store = open_logs("s3://kept/live", tmp_path)
    (tmp_path / "kept").write_bytes(b"nobody")
    store.replace("a.jsonl", tmp_path / "kept", store.version("a.jsonl"))
    versions = s3_server.list_object_versions(Bucket="kept")["Versions"]
    assert sorted(item["Key"] for item in versions) == ["live/a.jsonl", "live/a.jsonl.gz"]
    assert s3_server.get_object(Bucket="kept", Key="live/a.jsonl")["Body"].read() == b"nobody"


def test_a_kill_before_the_earlier_versions_go_is_made_good_by_the_next_run(s3_server, tmp_path, monkeypatch):
    others = (("b.jsonl", b"of others"), ("b.jsonl", b"of others again"))
    versioned(s3_server, "killed", ("a.jsonl", b"anna"), *others)
    store = open_logs("s3://killed/live", tmp_path)
    (tmp_path / "kept").write_bytes(b"nobody")

    def killed(*_):
        raise KeyboardInterrupt

    whole = type(store)._forget_earlier
    monkeypatch.setattr(type(store), "_forget_earlier", killed)
    with pytest.raises(KeyboardInterrupt):
        store.replace("a.jsonl", tmp_path / "kept", store.version("a.jsonl"))
    monkeypatch.setattr(type(store), "_forget_earlier", whole)
    s3_server.put_object(
        Bucket="killed", Key="live/a.jsonl", Body=b"nobody, and more"
    )  # somebody goes on with it
    assert len(s3_server.list_object_versions(Bucket="killed")["Versions"]) == 5
    for _ in range(2):
        store.sweep()
        left = [
            s3_server.get_object(Bucket="killed", Key=item["Key"], VersionId=item["VersionId"])["Body"].read()
            for item in s3_server.list_object_versions(Bucket="killed")["Versions"]
        ]
        assert sorted(left) == [b"nobody", b"nobody, and more", b"of others", b"of others again"]


def test_unfinished_copies_of_killed_runs_go_from_a_folder_of_logs(tmp_path):
    old = [".a.jsonl.tmp-4711", "date=2026-11-02/_message-12.parquet", f".b.jsonl.{'0f' * 16}"]
    others = ["a.jsonl", ".hidden", "_mine-12.parquet", ".new.jsonl.tmp-4711"]
    for name in (*old, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"anna")
    for name in (*old, *others[:-1]):
        os.utime(tmp_path / name, (0, 0))
    open_logs(str(tmp_path), tmp_path).sweep()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


def test_delivered_labels_are_rewritten_in_a_folder_and_on_s3(s3_server, tmp_path):
    s3_server.create_bucket(Bucket="labels")
    ids = Ids(WHO)
    ids.of["task"]["t1"] = WHO
    files = {
        "g0001/mine.jsonl": b'{"task_id": "t1"}\n{"task_id": "t2"}\n',
        "g0001/export.json": json.dumps(
            [{"id": 1, "data": {"task_id": "t1"}}, {"data": {"task_id": "t2"}}]
        ).encode(),
        "g0002/min.json": json.dumps([{"task_id": "t3"}]).encode(),
        "g0002/broken.json": b"[",
        "g0002/other.json": b'{"results": []}',
        "g0002/torn.jsonl": b'{"task_id": "t1"}\n{"task_id": \n{"task_id": "t2"}\n',
    }
    for name, data in files.items():
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / name).write_bytes(data)
        s3_server.put_object(Bucket="labels", Key=f"of/{name}", Body=data)
    for location in ("labels/{generation}", "s3://labels/of/{generation}"):
        found = {"g0001/export.json": 1, "g0001/mine.jsonl": 1, "g0002/torn.jsonl": 1}
        assert remove_labels(location, tmp_path, ids, dry_run=True).labels == found
        removed = remove_labels(location, tmp_path, ids, dry_run=False)
        assert removed.labels == found
        assert list(removed.broken) == ["g0002/broken.json", "g0002/other.json", "g0002/torn.jsonl"]
        assert removed.broken["g0002/torn.jsonl"].startswith("line 2 is no JSON")
        assert remove_labels(location, tmp_path, ids, dry_run=False).labels == {}
    assert (tmp_path / "labels/g0001/mine.jsonl").read_bytes() == b'{"task_id": "t2"}\n'
    body = s3_server.get_object(Bucket="labels", Key="of/g0001/export.json")["Body"].read()
    assert json.loads(body) == [{"data": {"task_id": "t2"}}]
    torn = s3_server.get_object(Bucket="labels", Key="of/g0002/torn.jsonl")["Body"].read()
    assert torn == b'{"task_id": \n{"task_id": "t2"}\n'
    assert remove_labels("nothing/here", tmp_path, ids, dry_run=False).labels == {}


@pytest.mark.parametrize(
    ("location", "delivered"),
    [
        ("labels/round-{generation}", "labels/round-g0001/mine.jsonl"),
        ("labels/{generation}.jsonl", "labels/g0001.jsonl"),
        ("labels/{generation}/of-{generation}/", "labels/g0001/of-g0001/deep/mine.json"),
        ("labels/{team}/{generation}", "labels/{team}/g0001/mine.json"),
        ("data/{generation}", "data/g0001/mine.jsonl"),
        ("labels", "labels/any/mine.jsonl"),
        ("labels/mine.json", "labels/mine.json"),
    ],
)
def test_labels_are_found_by_any_form_of_their_location(s3_server, tmp_path, location, delivered):
    ids = Ids(WHO)
    ids.of["task"]["t1"] = WHO
    mine = b'[{"task_id":"t1"}]' if delivered.endswith(".json") else b'{"task_id":"t1"}\n'
    others = ("labels/round-old/x.jsonl", "labels/old-g0001/x.jsonl", "data/annotation/labels.jsonl")
    files = {delivered: mine, **(dict.fromkeys(others, b'{"task_id":"t1"}\n') if "{" in location else {})}
    s3_server.create_bucket(Bucket=(bucket := f"forms-{hash_of(location, 0)[:4]}"))
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        s3_server.put_object(Bucket=bucket, Key=name, Body=data)
    assert local_files(location, tmp_path) == [tmp_path / delivered]
    assert list(remove_labels(location, tmp_path, ids, dry_run=False).labels.values()) == [1]
    left = {name: (tmp_path / name).read_bytes() for name in files}
    assert left == {**files, delivered: left[delivered]}
    assert b"t1" not in left[delivered]
    if not location.endswith((".jsonl", ".json")):  # on S3 a location is a folder
        found = remove_labels(f"s3://{bucket}/{location}", tmp_path, ids, dry_run=False).labels
        assert [delivered.endswith(name) for name in found] == [True]


@pytest.mark.parametrize(
    "location",
    [
        "{generation}",
        "{generation}/labels",
        "./{generation}/x",
        "/round-{generation}",
        "s3://of-{generation}/x",
    ],
)
def test_labels_without_a_folder_of_their_own_are_refused_before_anything_changes(checkout, location):
    settings = yaml.safe_load((checkout / "params.yaml").read_text())
    settings["label"]["location"] = location
    (checkout / "params.yaml").write_text(yaml.safe_dump(settings))
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match=r"label\.location: .*\{generation\} is in the first part"):
        call(checkout, "anna")
    assert {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()} == before


STAGES = ("ingest", "validate", "assemble", "curate", "split")


def talk(user: str):
    """Two turns of a user, with words of their own."""
    of = {"user_id": user, "conversation_id": f"c-{user}"}
    for k, role in enumerate(("user", "assistant", "user")):
        ids = {"event_id": f"e-{user}-{k}", "message_id": f"m-{user}-{k}"}
        above = f"m-{user}-{k - 1}" if k else None
        yield message(k + 1, role, None, **of, **ids, parent_id=above, text=f"{user} says {hash_of(user, k)}")


def hash_of(user: str, k: int) -> str:
    """Words that only this turn has."""
    digest = hashlib.sha256(f"{user}{k}".encode()).hexdigest().translate(_LETTERS)
    return " ".join(digest[n : n + 4] for n in range(0, 32, 4))


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def test_logs_on_s3_forgotten_and_the_data_stages_run_again_leave_no_row(
    s3_server, make_workspace, tiny_models, tmp_path, monkeypatch
):
    """The logs are not rewritten at first: the list of the forgotten alone must keep the user out."""
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    s3_server.create_bucket(Bucket="chat")
    users = [f"person-{n}" for n in range(12)]
    body = b"".join(map(line, [card(), *(event for user in users for event in talk(user))]))
    s3_server.put_object(Bucket="chat", Key="live/date=2026-11-02/a.jsonl", Body=body)
    halves = {name: 0.5 * (name in ("reward_train", "evaluation")) for name in SPLITS}
    changes = {"curate.duplicate_cosine": 1.0, "split.shares": halves, "split.max_evaluation_cosine": 1.0}
    root = make_workspace(tmp_path, {"logs.source": "files", "logs.location": "s3://chat/live", **changes})
    (root / "models").mkdir()
    (root / "models/embedder").symlink_to(tiny_models / "embedder")
    write_json({"earlier": []}, root / "inputs/splits.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")
    write_json(pin_users(KEY.fingerprint, set()), root / "inputs/users.json")

    def run_data_stages(stages=STAGES):
        write_json(pin_logs("s3://chat/live", root), root / "inputs/logs.json")
        for stage in stages:
            run_stage(stage, root)

    def holding(user: str) -> set[str]:
        """Files of the workspace that hold the user's hash, an id of theirs, or what they said."""
        marks = (KEY.hashed(user), f"c-{user}", hash_of(user, 0), hash_of(user, 2))
        found = set()
        for path in (root / "data").rglob("*"):
            text = str(read_rows(path)) if path.suffix == ".parquet" else path.is_file() and path.read_text()
            if text and any(mark in text for mark in marks):
                found.add(path.relative_to(root).as_posix())
        return found

    run_data_stages(STAGES[:3])
    assert {"data/validated/messages.parquet", "data/conversations/prompts.parquet"} <= holding("person-3")
    output = call(root, "person-3")
    assert "s3://chat/live/date=2026-11-02/a.jsonl" in output
    assert holding("person-3") == set()
    run_data_stages()
    assert holding("person-3") == set()
    assert len(holding("person-4")) == 5
    assert read_json(root / "metrics/ingest.json")["forgotten"] == 3
    assert (
        b"person-3" in s3_server.get_object(Bucket="chat", Key="live/date=2026-11-02/a.jsonl")["Body"].read()
    )
    call(root, "person-3", "--raw-logs")
    raw = s3_server.get_object(Bucket="chat", Key="live/date=2026-11-02/a.jsonl")["Body"].read()
    assert raw == b"".join(one for one in body.splitlines(keepends=True) if b"person-3" not in one)


def test_what_stages_keep_beside_their_outputs_goes_too(checkout):
    rows = [{**prompt("p1"), "user_id": WHO, "turn": 1}]
    from flywheel_tasks.conversations.schemas import PROMPTS

    write_rows(rows, PROMPTS, checkout / "data/curated/prompts.parquet")
    kept = (
        "tmp/x",
        "resume/annotation_batch/champion.jsonl",
        "contracts/contracts.html",
        "contracts/quarantine.parquet",
        "cache/ingest/a",
        "cache/embeddings/vectors.sqlite",
    )
    for name in [
        *(f".flywheel/{name}" for name in kept),
        "gate/report.html",
        "gate/approval.md",
        "data/validated/contracts.html",
    ]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("words of the user")
    call(checkout, "anna")
    assert not [
        path for path in checkout.rglob("*") if path.is_file() and path.read_bytes() == b"words of the user"
    ]
