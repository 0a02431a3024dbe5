"""A user is found in raw logs, and their lines go, whatever the logs call the field of their id."""

import gzip
import tracemalloc
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import UserKey
from flywheel_tasks.traffic.log_store import FolderStore, LogsError
from flywheel_tasks.traffic.logs import list_logs, partition_blocks, pin_logs
from tests.traffic.sample import damaged_parquet, line, message, write_log

KEY = UserKey("0123456789abcdef" * 4)
ALICE, RENAME = "alice@corp.com", {"author": "user_id", "kind": "type"}


def renamed(number: int, user: str) -> dict:
    event = message(number, "user", None)
    return {**{name: value for name, value in event.items() if name != "user_id"}, "author": user}


def find(root, key, users, rename, location="data/logs"):
    return forget_logs.find(location, root, list_logs(location, root), key, users, rename)


LINES = [
    line(renamed(1, ALICE)),
    line(renamed(2, "ben")),
    line(renamed(3, ALICE))[:-3] + b"\n",  # cut behind the id
    line(message(4, "user", None, user_id=ALICE)),
    line({**renamed(5, ALICE), "author": {"id": ALICE}}),
    line(message(6, "user", None, user_id="ben", text=f"not {ALICE}")),
]


@pytest.mark.parametrize("name", ["date=2026-11-02/a.jsonl", "date=2026-11-02/a.jsonl.gz"])
def test_lines_under_an_old_name_are_found_and_go(tmp_path, name):
    write_log(tmp_path, LINES, name)
    who = (KEY, {KEY.hashed(ALICE)}, RENAME)
    assert find(tmp_path, KEY, {KEY.hashed(ALICE)}, {}).lines == {name: 1}
    assert find(tmp_path, *who).lines == {name: 4}
    forget_logs.rewrite("data/logs", tmp_path, [name], *who)
    assert find(tmp_path, *who) == ({}, {}, set())
    assert find(tmp_path, KEY, {KEY.hashed("ben")}, RENAME).lines == {name: 2}


def test_rows_under_an_old_name_are_found_and_go(tmp_path):
    name = "date=2026-11-02/a.parquet"
    rows = [
        {"event_id": "e1", "user_id": None, "author": ALICE},
        {"event_id": "e2", "user_id": ALICE, "author": None},
        {"event_id": "e3", "user_id": "ben", "author": None},
        {"event_id": "e4", "user_id": None, "author": None},
    ]
    for columns in (["event_id", "user_id", "author"], ["event_id", "author"]):
        buffer = BytesIO()
        pq.write_table(pa.Table.from_pylist(rows).select(columns), buffer)
        write_log(tmp_path, [buffer.getvalue()], name)
        found = find(tmp_path, KEY, {KEY.hashed(ALICE)}, RENAME)[:2]
        assert found == ({name: len(columns) - 1}, {})
        forget_logs.rewrite("data/logs", tmp_path, [name], KEY, {KEY.hashed(ALICE)}, RENAME)
        left = pq.read_table(tmp_path / "data/logs" / name)
        assert left["event_id"].to_pylist() == (["e3", "e4"] if "user_id" in columns else ["e2", "e3", "e4"])


def pack(data):
    return gzip.compress(data, mtime=0)


def test_a_cut_file_is_told_of_searched_as_far_as_it_goes_and_stays_cut(tmp_path):
    name, who = "date=2026-11-02/a.jsonl.gz", (KEY, {KEY.hashed(ALICE)}, RENAME)
    whole = [LINES[0], LINES[1], LINES[1][:-20]]  # the last line is not whole
    path = write_log(tmp_path, [], name)
    path.write_bytes(pack(b"".join(whole))[:-8])
    found = find(tmp_path, *who)
    assert found.lines == {name: 1}
    assert found.broken == {name: "is cut: what can be read of it was searched"}
    forget_logs.rewrite("data/logs", tmp_path, [name], *who)
    found = find(tmp_path, *who)
    assert found.lines == {}
    assert list(found.broken) == [name]
    [partition] = pin_logs("data/logs", tmp_path)["partitions"]
    blocks = list(partition_blocks("data/logs", tmp_path, partition, max_line_bytes=10_000))
    assert [(block.data, block.problem) for block in blocks] == [
        (whole[1], None),
        (whole[2], "truncated_gzip"),
    ]


def test_a_damaged_file_is_told_of_and_keeps_no_other_from_being_searched(tmp_path):
    broken, name = "date=2026-11-02/a.jsonl.gz", "date=2026-11-03/b.jsonl"
    write_log(tmp_path, [], broken).write_bytes(b"no gzip")
    write_log(tmp_path, [], "date=2026-11-02/c.parquet").write_bytes(b"no parquet")
    write_log(tmp_path, LINES, name)
    found = find(tmp_path, KEY, {KEY.hashed(ALICE)}, RENAME)
    assert found.lines == {name: 4}
    assert list(found.broken) == [broken, "date=2026-11-02/c.parquet"]
    assert all("mend or delete it yourself" in why for why in found.broken.values())


def test_parquet_with_damaged_pages_or_ids_that_are_no_text_is_told_of(tmp_path):
    names = [f"date=2026-11-02/{name}.parquet" for name in "ab"]
    damaged_parquet(write_log(tmp_path, [], names[0]), [{"user_id": f"user {k}"} for k in range(3_000)])
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"user_id": bad}), write_log(tmp_path, [], names[1]))
    found = find(tmp_path, KEY, {KEY.hashed(ALICE)}, RENAME)
    assert list(found.broken) == names
    assert all("is damaged" in why for why in found.broken.values())
    with pytest.raises(LogsError, match=r"a\.parquet is damaged by now"):
        forget_logs.rewrite("data/logs", tmp_path, names, KEY, {KEY.hashed(ALICE)}, RENAME)


def test_where_there_are_no_logs_there_is_nobody(tmp_path):
    (tmp_path / "data/logs").mkdir(parents=True)
    assert find(tmp_path, KEY, {KEY.hashed(ALICE)}, {}) == ({}, {}, set())
    forget_logs.rewrite("data/logs", tmp_path, [], KEY, {KEY.hashed(ALICE)}, {})


WHO = (KEY, {KEY.hashed(ALICE)}, RENAME)


@pytest.fixture
def written_to(monkeypatch):
    """Paths that get another line as soon as they have been read."""
    grows, chunks = set(), FolderStore.chunks

    def growing(self, name):
        yield from chunks(self, name)
        if (path := self._folder / name) in grows:
            with path.open("ab") as file:
                file.write(LINES[0])

    monkeypatch.setattr(FolderStore, "chunks", growing)
    return grows


def test_logs_that_grow_and_go_while_they_are_searched_are_searched_all_the_same(tmp_path, written_to):
    paths = [write_log(tmp_path, LINES, f"date=2026-11-0{day}/a.jsonl") for day in (2, 3, 4)]
    names = list_logs("data/logs", tmp_path)
    written_to.add(paths[0])
    paths[1].unlink()
    found = forget_logs.find("data/logs", tmp_path, names, *WHO)[:2]
    assert found == ({names[0]: 4, names[2]: 4}, {})
    forget_logs.rewrite("data/logs", tmp_path, [names[1]], *WHO)
    assert not paths[1].exists()


def test_a_file_that_is_written_to_while_it_is_rewritten_stays_and_is_named(tmp_path, written_to):
    paths = [write_log(tmp_path, LINES, f"date=2026-11-0{day}/a.jsonl") for day in (2, 3)]
    names = list_logs("data/logs", tmp_path)
    written_to.add(paths[0])
    with pytest.raises(LogsError, match=r"date=2026-11-02/a\.jsonl: was written to while .* run the command"):
        forget_logs.rewrite("data/logs", tmp_path, names, *WHO)
    assert paths[0].read_bytes() == b"".join([*LINES, LINES[0]])
    assert paths[1].read_bytes() == LINES[1] + LINES[5]
    assert [path.name for path in paths[0].parent.iterdir()] == ["a.jsonl"]
    written_to.clear()
    forget_logs.rewrite("data/logs", tmp_path, names, *WHO)
    assert paths[0].read_bytes() == LINES[1] + LINES[5]


def test_on_s3_a_file_that_another_one_replaces_meanwhile_stays(s3_server, tmp_path, monkeypatch):
    from flywheel_tasks.traffic.log_store import BucketStore

    s3_server.create_bucket(Bucket="grows")
    name, chunks = "date=2026-11-02/a.jsonl", BucketStore.chunks
    stored = {"Bucket": "grows", "Key": f"live/{name}"}
    s3_server.put_object(**stored, Body=b"".join(LINES))

    def growing(self, name):
        yield from chunks(self, name)
        s3_server.put_object(**stored, Body=b"".join([*LINES, LINES[1]]))

    with monkeypatch.context() as patch:
        patch.setattr(BucketStore, "chunks", growing)
        with pytest.raises(LogsError, match=f"{name}: was written to"):
            forget_logs.rewrite("s3://grows/live", tmp_path, [name], *WHO)
    assert s3_server.get_object(**stored)["Body"].read() == b"".join([*LINES, LINES[1]])
    assert find(tmp_path, *WHO, location="s3://grows/live")[:2] == ({name: 4}, {})
    forget_logs.rewrite("s3://grows/live", tmp_path, [name], *WHO)
    assert s3_server.get_object(**stored)["Body"].read() == LINES[1] + LINES[5] + LINES[1]
    s3_server.delete_object(**stored)
    assert forget_logs.find("s3://grows/live", tmp_path, [name], *WHO) == ({}, {}, set())
    forget_logs.rewrite("s3://grows/live", tmp_path, [name], *WHO)


def test_a_large_file_goes_to_s3_in_parts(s3_server, tmp_path):
    s3_server.create_bucket(Bucket="large")
    stored = {"Bucket": "large", "Key": "date=2026-11-02/a.jsonl"}
    other = line(message(7, "user", None, user_id="ben", text="x" * 1_000_000))
    s3_server.put_object(**stored, Body=LINES[0] + other * 9)
    forget_logs.rewrite("s3://large", tmp_path, [stored["Key"]], *WHO)
    assert s3_server.get_object(**stored)["Body"].read() == other * 9
    assert s3_server.head_object(**stored)["ETag"].strip('"').endswith("-2")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_is_rewritten_in_memory_that_does_not_grow_with_it(tmp_path, name):
    name = f"date=2026-11-02/{name}"
    rows = [renamed(k, ALICE if k % 2 else "ben") | {"text": f"{k}" + "x" * 100_000} for k in range(200)]
    write_log(tmp_path, map(line, rows), name)
    tracemalloc.start()
    assert find(tmp_path, *WHO).lines == {name: 100}
    forget_logs.rewrite("data/logs", tmp_path, [name], *WHO)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
    assert find(tmp_path, *WHO).lines == {}
    assert find(tmp_path, KEY, {KEY.hashed("ben")}, RENAME).lines == {name: 100}


def test_parquet_is_rewritten_some_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(forget_logs, "_BATCH_ROWS", 10)
    name = "date=2026-11-02/a.parquet"
    rows = [{"event_id": f"e{k}", "user_id": ALICE if k < 10 or k % 2 else "ben"} for k in range(35)]
    path = write_log(tmp_path, [], name)
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"made": "by them"}), path)
    assert find(tmp_path, *WHO).lines == {name: 22}
    forget_logs.rewrite("data/logs", tmp_path, [name], *WHO)
    left = pq.ParquetFile(path)
    assert left.read().to_pylist() == [row for row in rows if row["user_id"] == "ben"]
    assert left.schema_arrow.metadata[b"made"] == b"by them"
    assert left.num_row_groups > 1
