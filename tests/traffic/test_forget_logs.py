"""A user is found in raw logs, and their lines go, whatever the logs call the field of their id."""

from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.identity import UserKey
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
    assert forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed(ALICE), {}) == {name: 1}
    assert forget_logs.find("data/logs", tmp_path, *who) == {name: 4}
    forget_logs.rewrite("data/logs", tmp_path, [name], *who)
    assert forget_logs.find("data/logs", tmp_path, *who) == {}
    assert forget_logs.find("data/logs", tmp_path, KEY, KEY.hashed("ben"), RENAME) == {name: 2}


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
        assert found == {name: len(columns) - 1}
        forget_logs.rewrite("data/logs", tmp_path, [name], KEY, KEY.hashed(ALICE), RENAME)
        left = pq.read_table(tmp_path / "data/logs" / name)
        assert left["event_id"].to_pylist() == (["e3", "e4"] if "user_id" in columns else ["e2", "e3", "e4"])
