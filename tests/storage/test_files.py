"""Outputs appear whole or not at all; JSON never holds NaN; digests see every byte and name."""

import math
import os
from codecs import BOM_UTF8
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_tasks.storage.atomic import atomic_path
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import (
    DocumentError,
    finite,
    read_json,
    read_jsonl,
    read_numbered,
    write_json,
    write_jsonl,
)
from flywheel_tasks.storage.tables import read_rows, write_rows


def test_an_error_leaves_what_was_there(tmp_path):
    final = tmp_path / "a.txt"
    final.write_text("old")

    def fail():
        with atomic_path(final) as temporary:
            temporary.write_text("new, unfin")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert final.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_must_outlast_a_power_cut_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    final, seen = tmp_path / "params.yaml", []

    def noted(descriptor):
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink(), final.exists()))

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_path(final, synced=True) as temporary:
        temporary.write_text("a")
    assert seen == [(temporary, False), (tmp_path, True)]
    with atomic_path(final) as temporary:
        temporary.write_text("b")
    assert len(seen) == 2, "what is written every second is not"


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "stale").touch()
    with atomic_path(tmp_path / "m") as temporary:
        temporary.mkdir()
        (temporary / "fresh").touch()
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["fresh"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(values)
def test_json_returns_what_went_in_with_null_for_what_is_not_finite(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "v.json"
    write_json(value, path)
    assert read_json(path) == finite(value)


def test_not_finite_is_null():
    assert finite({"a": [math.nan, math.inf, 1.5]}) == {"a": [None, None, 1.5]}


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl([{"a": 1}, {"a": 2}], path)
    assert [row["a"] for row in read_jsonl(path)] == [1, 2]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DocumentError, match=r"rows\.jsonl:2: not JSON"):
        list(read_jsonl(path))
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DocumentError, match=r"rows\.jsonl:2: not a JSON object"):
        list(read_jsonl(path))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(BOM_UTF8 + b'\n{"a": 1}\n\n{"a": 2}\n')
    assert list(read_numbered(path)) == [(2, {"a": 1}), (4, {"a": 2})]
    path.write_bytes(BOM_UTF8 + b'{"a": 1}\n' + BOM_UTF8 + b'{"a": 2}\n')
    with pytest.raises(DocumentError, match=r"rows\.jsonl:2: not JSON"):
        list(read_jsonl(path))
    path.write_bytes(BOM_UTF8 + b'{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_an_empty_table_keeps_its_schema(tmp_path):
    schema = pa.schema([("a", pa.int64()), ("b", pa.list_(pa.string()))])
    write_rows([], schema, tmp_path / "t.parquet")
    assert read_rows(tmp_path / "t.parquet") == []


def test_a_digest_sees_names_and_contents(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a").write_text("1")
    seen = {tree_digest(folder)}
    (folder / "a").write_text("2")
    seen.add(tree_digest(folder))
    (folder / "a").rename(folder / "b")
    seen.add(tree_digest(folder))
    (folder / "c").touch()
    seen.add(tree_digest(folder))
    assert len(seen) == 4
    with pytest.raises(FileNotFoundError):
        tree_digest(tmp_path / "absent")
