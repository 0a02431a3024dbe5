"""Object stores: created once, by one of many, never outside."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flywheel_tasks.storage.objects import (
    Exists,
    FolderStore,
    MissingObjectError,
    ObjectStore,
    PlaceError,
    StoreError,
    open_store,
)
from tests.ports import free_port


def test_an_object_is_created_once(store: ObjectStore) -> None:
    store.create("changes/00000001.json", b"first")
    with pytest.raises(Exists):
        store.create("changes/00000001.json", b"second")
    assert store.get("changes/00000001.json") == b"first"
    store.create("generations/g0001/logs.json", b"{}")
    assert store.list("changes/") == ["changes/00000001.json"]
    assert store.list("") == ["changes/00000001.json", "generations/g0001/logs.json"]
    assert store.list("none/") == []


def test_a_deleted_object_is_gone_and_no_other(store: ObjectStore) -> None:
    for key in ("labels/1.json", "labels/12.json"):
        store.create(key, b"[]")
    store.delete("labels/1.json")
    store.delete("labels/1.json")
    assert store.list("") == ["labels/12.json"]
    store.create("labels/1.json", b"again")
    assert store.get("labels/1.json") == b"again"


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(MissingObjectError, match=r"changes/00000009\.json"):
        store.get("changes/00000009.json")


@pytest.mark.parametrize("key", ["../x", "/x", "a//b", "a/../b", "", ".hidden", "a/.b"])
def test_keys_stay_inside(tmp_path: Path, key: str) -> None:
    with pytest.raises(PlaceError, match="not an object key"):
        FolderStore(tmp_path / "store").create(key, b"")


@pytest.mark.parametrize("key", ["../x", "/x", "a//b", "a/../b", ""])
def test_nothing_outside_is_read_or_deleted(store: ObjectStore, key: str) -> None:
    for use in (store.get, store.delete):
        with pytest.raises(PlaceError, match="not an object key"):
            use(key)


@pytest.mark.parametrize("name", ["project-1 (1).json", "_notes.json", "müller.jsonl"])
def test_what_people_delivered_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[]")
    store = FolderStore(tmp_path)
    assert store.list("") == [name]
    assert store.get(name) == b"[]"


@pytest.mark.parametrize("location", ["gs://bucket/x", "s3://", "s3:///x"])
def test_other_places_are_refused(location: str, tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="not a place for objects"):
        open_store(location, tmp_path)


@pytest.mark.parametrize("endpoint", ["not a url", "minio:9000", "http://[::1"])
def test_an_endpoint_that_is_no_url_is_named(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(PlaceError, match="AWS_ENDPOINT_URL"):
        open_store("s3://flywheel/registry", tmp_path)


def test_one_of_many_creators_wins(store: ObjectStore) -> None:
    def create(number: int) -> bool:
        try:
            store.create("changes/00000001.json", str(number).encode())
        except Exists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.get("changes/00000001.json") == str(won.index(True)).encode()
    assert store.list("") == ["changes/00000001.json"]  # no leftovers


def test_a_put_repeated_after_a_lost_answer_is_no_refusal(s3: None, tmp_path: Path) -> None:
    store = open_store("s3://flywheel/lost", tmp_path)
    send = store._client.put_object

    def answer_lost(**request):
        send(**request)
        return send(**request)  # what botocore does when the first answer does not arrive

    store._client.put_object = answer_lost
    store.create("changes/00000001.json", b"mine")
    with pytest.raises(Exists):
        store.create("changes/00000001.json", b"other")


def test_a_server_that_cannot_be_reached_or_refuses_is_named(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(store: ObjectStore, why: str) -> None:
        for call in (
            lambda: store.get("changes/1.json"),
            lambda: store.list("changes/"),
            lambda: store.create("changes/1.json", b"1"),
            lambda: store.delete("changes/1.json"),
        ):
            with pytest.raises(StoreError, match=why):
                call()

    refused(open_store("s3://nobodys/registry", tmp_path), "s3://nobodys/registry/: .*NoSuchBucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    refused(open_store("s3://flywheel/registry", tmp_path), "s3://flywheel/registry/: Could not connect")
