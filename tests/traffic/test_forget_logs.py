"""A user is found in raw logs, and their lines go, whatever the logs call the field of their id."""

import gzip
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import UserKey
from flywheel_tasks.traffic.logs import partition_blocks, pin_logs
from tests.traffic.sample import line, message, write_log

KEY = UserKey("0123456789abcdef" * 4)
ALICE, RENAME = "alice@corp.com", {"author": "user_id", "kind": "type"}


def renamed(number: int, user: str) -> dict:
    event = message(number, "user", None)
    return {**{name: value for name, value in event.items() if name != "user_id"}, "author": user}


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
    who = (KEY, KEY.hashed(ALICE), RENAME)
    assert forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed(ALICE), {}).lines == {name: 1}
    assert forget_logs.find("data/logs", tmp_path, *who).lines == {name: 4}
    forget_logs.rewrite("data/logs", tmp_path, [name], *who)
    assert forget_logs.find("data/logs", tmp_path, *who) == ({}, {})
    assert forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed("ben"), RENAME).lines == {name: 2}


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
        found = forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed(ALICE), RENAME)
        assert found == ({name: len(columns) - 1}, {})
        forget_logs.rewrite("data/logs", tmp_path, [name], KEY, KEY.hashed(ALICE), RENAME)
        left = pq.read_table(tmp_path / "data/logs" / name)
        assert left["event_id"].to_pylist() == (["e3", "e4"] if "user_id" in columns else ["e2", "e3", "e4"])


def pack(data):
    return gzip.compress(data, mtime=0)


def test_a_cut_file_is_told_of_searched_as_far_as_it_goes_and_stays_cut(tmp_path):
    name, who = "date=2026-11-02/a.jsonl.gz", (KEY, KEY.hashed(ALICE), RENAME)
    whole = [LINES[0], LINES[1], LINES[1][:-20]]  # the last line is not whole
    path = write_log(tmp_path, [], name)
    path.write_bytes(pack(b"".join(whole))[:-8])
    found = forget_logs.find("data/logs", tmp_path, *who)
    assert found.lines == {name: 1}
    assert found.broken == {name: "is cut: what can be read of it was searched"}
    forget_logs.rewrite("data/logs", tmp_path, [name], *who)
    found = forget_logs.find("data/logs", tmp_path, *who)
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
    found = forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed(ALICE), RENAME)
    assert found.lines == {name: 4}
    assert list(found.broken) == [broken, "date=2026-11-02/c.parquet"]
    assert all("mend or delete it yourself" in why for why in found.broken.values())


def test_where_there_are_no_logs_there_is_nobody(tmp_path):
    (tmp_path / "data/logs").mkdir(parents=True)
    assert forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed(ALICE), {}) == ({}, {})
    forget_logs.rewrite("data/logs", tmp_path, [], KEY, KEY.hashed(ALICE), {})
