import gzip
import hashlib
from datetime import date
from pathlib import Path

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.objects import PlaceError
from flywheel_tasks.traffic import known_digests, log_store
from flywheel_tasks.traffic.log_store import open_logs
from flywheel_tasks.traffic.logs import LogsError, partition_blocks, pin_logs, read_pinned
from tests.traffic.sample import write_log


def read(location: str, root: Path, partition: dict) -> list[bytes]:
    blocks = partition_blocks(location, root, partition, max_line_bytes=100)
    return [line for block in blocks for line in block.data.splitlines()]


def test_partitions_are_pinned_sorted_with_digest_and_size(tmp_path):
    write_log(tmp_path, [b"b\n"], "date=2026-11-03/b.jsonl")
    packed = write_log(tmp_path, [b"a\n"], "date=2026-11-02/z.jsonl.gz")
    write_log(tmp_path, [b"hidden"], "date=2026-11-02/.part.jsonl.tmp")
    write_log(tmp_path, [b"hidden"], "_SUCCESS")
    write_log(tmp_path, [b"{}"], "simulated.json")
    pinned = pin_logs("data/logs", tmp_path)
    assert pinned["location"] == "data/logs"
    assert [item["path"] for item in pinned["partitions"]] == [
        "date=2026-11-02/z.jsonl.gz",
        "date=2026-11-03/b.jsonl",
    ]
    assert pinned["partitions"][0]["sha256"] == "sha256:" + hashlib.sha256(packed.read_bytes()).hexdigest()
    assert pinned["partitions"][0]["bytes"] == len(packed.read_bytes())
    assert read("data/logs", tmp_path, pinned["partitions"][0]) == [b"a"]


def test_a_partition_from_the_future_is_refused_by_name(tmp_path):
    for day in ("2026-11-03", "2026-11-05", "2027-06-01"):
        write_log(tmp_path, [b"a\n"], f"date={day}/a.jsonl")
    with pytest.raises(
        LogsError, match=r"date=2027-06-01/a\.jsonl is from the future \(today is 2026-11-04, UTC\)"
    ):
        pin_logs("data/logs", tmp_path, newest_days=7, today=date(2026, 11, 4))
    (tmp_path / "data/logs/date=2027-06-01/a.jsonl").unlink()
    assert len(pin_logs("data/logs", tmp_path, today=date(2026, 11, 4))["partitions"]) == 2


def test_what_was_read_before_an_error_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(log_store, "_SETTLED", -1.0)
    for day in range(1, 8):
        write_log(tmp_path, [b"a\n"], f"date=2026-11-0{day}/a.jsonl")
    lost = tmp_path / "data/logs/date=2026-11-07/a.jsonl"
    chunks = log_store.FolderStore.chunks

    def failing(self, name):
        if name.startswith("date=2026-11-07"):
            raise LogsError("lost")
        return chunks(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(log_store.FolderStore, "chunks", failing)
        with pytest.raises(LogsError, match="lost"):
            pin_logs("data/logs", tmp_path)
    assert lost.exists()
    assert pinned_again("data/logs", tmp_path, monkeypatch)[1] == ["date=2026-11-07/a.jsonl"]


def test_partitions_behind_a_linked_folder_are_found(tmp_path):
    elsewhere = write_log(tmp_path / "elsewhere", [b"a\n"]).parent
    write_log(tmp_path, [b"b\n"], "date=2026-11-03/b.jsonl")
    (tmp_path / "data/logs/date=2026-11-02").symlink_to(elsewhere)
    assert len(pin_logs("data/logs", tmp_path)["partitions"]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "part.jsonl",
        "2026-11-02/part.jsonl.gz",
        "date=2026-11-02/part.json",
        "date=2026-11-02/part.JSONL.GZ",
        "date=2026-11-02/hour=01/part.jsonl",
        "date=2026-02-30/part.jsonl",
        "date=today/part.jsonl",
    ],
)
def test_a_log_in_a_wrong_place_is_refused_by_name(tmp_path, name):
    write_log(tmp_path, [b"x\n"])
    write_log(tmp_path, [b"x\n"], name)
    with pytest.raises(LogsError, match=name.replace(".", r"\.")):
        pin_logs("data/logs", tmp_path)


def test_no_folder_no_logs_and_other_addresses_are_clear_errors(tmp_path):
    with pytest.raises(LogsError, match="no such folder"):
        pin_logs("data/logs", tmp_path)
    (tmp_path / "data/logs").mkdir(parents=True)
    with pytest.raises(LogsError, match="no logs"):
        pin_logs("data/logs", tmp_path)
    with pytest.raises(LogsError, match="s3://"):
        pin_logs("gs://bucket/logs", tmp_path)
    with pytest.raises(LogsError, match="no bucket"):
        pin_logs("s3://", tmp_path)


def test_an_endpoint_that_is_no_url_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(PlaceError, match="AWS_ENDPOINT_URL"):
        pin_logs("s3://chat", tmp_path)


@pytest.mark.parametrize("name", ["date=2026-11-02/p.jsonl", "date=2026-11-02/p.jsonl.gz"])
def test_a_changed_or_missing_partition_is_refused(tmp_path, name):
    path = write_log(tmp_path, [b"a\n", b"b\n"], name)
    partition = pin_logs("data/logs", tmp_path)["partitions"][0]
    write_log(tmp_path, [b"a\n", b"B\n"], name)
    with pytest.raises(LogsError, match=r"p\.jsonl.* changed since it was pinned"):
        read("data/logs", tmp_path, partition)
    path.unlink()
    with pytest.raises(LogsError, match="cannot be read"):
        read("data/logs", tmp_path, partition)


def test_damaged_gzip_names_file_and_line(tmp_path):
    path = write_log(tmp_path, [b"%d\n" % n for n in range(1_000_000)], "date=2026-11-02/p.jsonl.gz")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the length in the trailer
    path.write_bytes(data)
    partition = pin_logs("data/logs", tmp_path)["partitions"][0]
    with pytest.raises(LogsError, match=r"p\.jsonl\.gz: damaged gzip, beyond line [1-9]"):
        read("data/logs", tmp_path, partition)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "location is missing"),
        ({"location": "x"}, "partitions is missing"),
        ({"location": "x", "partitions": []}, "no logs are pinned"),
        ({"location": "x", "partitions": [{"path": 1}]}, r"partitions\[0\]"),
        ({"location": "x", "partitions": [{"path": "../secret.jsonl", "sha256": "y"}]}, "secret"),
        ({"location": "x", "partitions": [{"path": "date=2026-11-02/a.jsonl", "sha256": "y"}] * 2}, "twice"),
    ],
)
def test_a_wrong_pin_document_is_refused(tmp_path, document, message):
    write_json(document, tmp_path / "logs.json")
    with pytest.raises(LogsError, match=message):
        read_pinned(tmp_path / "logs.json")


@pytest.fixture(scope="module")
def s3(s3_server):
    s3_server.create_bucket(Bucket="traffic")
    return s3_server


def test_s3_is_listed_pinned_and_read_as_a_folder_is(s3, tmp_path):
    for name, data in {
        "chat/date=2026-11-03/b.jsonl": b"b\n",
        "chat/date=2026-11-02/a.jsonl.gz": gzip.compress(b"a1\na2\n", mtime=0),
        "chat/_manifest": b"",
        "chatter/date=2026-11-02/other.jsonl": b"other\n",
    }.items():
        s3.put_object(Bucket="traffic", Key=name, Body=data)
        if name.startswith("chat/"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    pinned = pin_logs("s3://traffic/chat/", tmp_path)
    assert pinned["partitions"] == pin_logs("chat", tmp_path)["partitions"]
    location, partitions = pinned["location"], pinned["partitions"]
    assert [read(location, tmp_path, item) for item in partitions] == [[b"a1", b"a2"], [b"b"]]

    s3.put_object(Bucket="traffic", Key="chat/date=2026-11-03/b.jsonl", Body=b"changed\n")
    with pytest.raises(LogsError, match="changed since it was pinned"):
        read(location, tmp_path, partitions[1])
    s3.delete_object(Bucket="traffic", Key="chat/date=2026-11-03/b.jsonl")
    with pytest.raises(LogsError, match="cannot be read"):
        read(location, tmp_path, partitions[1])


def test_more_objects_than_one_listing_holds(s3, tmp_path):
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # of the server, which runs in this process
    for number in range(1005):
        backend.put_object("traffic", f"many/date=2026-11-02/{number:04d}.jsonl", b"")
    store = open_logs("s3://traffic/many", tmp_path)
    names = list(store.names())
    assert len(names) == 1005
    backend.put_object("traffic", "many/date=2026-11-02/new.jsonl", b"")
    assert set(store.versions([*names, "new.jsonl"])) == set(names), "of the same listing"
    assert len(open_logs("s3://traffic/many", tmp_path).versions(names)) == 1005


def test_an_absent_bucket_is_a_clear_error(s3, tmp_path):
    with pytest.raises(LogsError, match="s3://nowhere/x: cannot be listed"):
        pin_logs("s3://nowhere/x", tmp_path)
    with pytest.raises(LogsError, match="no logs"):
        pin_logs("s3://traffic/empty", tmp_path)


def pinned_again(location: str, root: Path, monkeypatch) -> tuple[dict, list[str]]:
    """Pin once more, and the files that were read for it."""
    read: list[str] = []
    with monkeypatch.context() as patch:
        for store in (log_store.FolderStore, log_store.BucketStore):
            chunks = store.chunks

            def spy(self, name, chunks=chunks):
                read.append(name)
                return chunks(self, name)

            patch.setattr(store, "chunks", spy)
        return pin_logs(location, root), sorted(read)


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_what_was_pinned_before_is_read_again_only_where_it_changed(kind, s3, tmp_path, monkeypatch):
    location = "data/logs" if kind == "folder" else "s3://traffic/again"
    monkeypatch.setattr(log_store, "_SETTLED", -1.0)

    def write(name: str, data: bytes) -> None:
        if kind == "folder":
            write_log(tmp_path, [data], name)
        else:
            s3.put_object(Bucket="traffic", Key=f"again/{name}", Body=data)

    a, b, c = (f"date=2026-11-0{day}/x.jsonl" for day in (1, 2, 3))
    write(a, b"a1\n")
    write(b, b"b1\n")
    first, read = pinned_again(location, tmp_path, monkeypatch)
    assert read == [a, b]
    second, read = pinned_again(location, tmp_path, monkeypatch)
    assert (second, read) == (first, [])
    write(b, b"b2\n")
    write(c, b"c1\n")
    third, read = pinned_again(location, tmp_path, monkeypatch)
    assert read == [b, c]
    assert third["partitions"][0] == first["partitions"][0]
    digests = {item["path"]: item["sha256"] for item in third["partitions"]}
    assert digests[b] == "sha256:" + hashlib.sha256(b"b2\n").hexdigest()


def test_a_file_that_was_written_a_moment_ago_is_read_again(tmp_path, monkeypatch):
    """Another write within the same tick of the clock would leave its size and times as they are."""
    write_log(tmp_path, [b"a\n"], "date=2026-11-01/a.jsonl")
    monkeypatch.setattr(log_store, "_SETTLED", 3600.0)
    pin_logs("data/logs", tmp_path)
    assert pinned_again("data/logs", tmp_path, monkeypatch)[1] == ["date=2026-11-01/a.jsonl"]


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = write_log(tmp_path, [b"a\n"], "date=2026-11-01/a.jsonl")
    monkeypatch.setattr(log_store, "_SETTLED", -1.0)
    chunks = log_store.FolderStore.chunks

    def growing(self, name):
        yield from chunks(self, name)
        with path.open("ab") as file:
            file.write(b"b\n")

    with monkeypatch.context() as patch:
        patch.setattr(log_store.FolderStore, "chunks", growing)
        before = pin_logs("data/logs", tmp_path)
    after = pin_logs("data/logs", tmp_path)
    assert [item["bytes"] for found in (before, after) for item in found["partitions"]] == [2, 4]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"date=2026-11-01/a.jsonl": {"version": 1}}'])
def test_damaged_memory_of_digests_costs_a_reading(content, tmp_path, monkeypatch):
    write_log(tmp_path, [b"a\n"], "date=2026-11-01/a.jsonl")
    monkeypatch.setattr(log_store, "_SETTLED", -1.0)
    first = pin_logs("data/logs", tmp_path)
    (kept,) = (tmp_path / known_digests.FOLDER).iterdir()
    kept.write_bytes(content)
    assert pin_logs("data/logs", tmp_path) == first


def test_bytes_that_are_not_what_their_version_promised_are_pinned_anew(tmp_path, monkeypatch):
    """A disk that lies about its times: the error says to start a new generation, and that must help."""
    path = write_log(tmp_path, [b"a\n"], "date=2026-11-01/a.jsonl")
    monkeypatch.setattr(log_store, "_SETTLED", -1.0)
    monkeypatch.setattr(log_store, "_version_of", lambda found: "1")
    pinned = pin_logs("data/logs", tmp_path)["partitions"][0]
    path.write_bytes(b"b\n")
    assert pin_logs("data/logs", tmp_path)["partitions"] == [pinned]
    with pytest.raises(LogsError, match="start a new generation"):
        read("data/logs", tmp_path, pinned)
    again = pin_logs("data/logs", tmp_path)["partitions"][0]
    assert again["sha256"] == "sha256:" + hashlib.sha256(b"b\n").hexdigest()
    assert read("data/logs", tmp_path, again) == [b"b"]
