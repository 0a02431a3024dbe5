"""Partitions parsed before are not parsed again; what another scope, another run or a kill left does no harm."""

import gzip
import shutil
import threading

import pytest

from flywheel_tasks.traffic.ingest import Ingestion
from flywheel_tasks.traffic.logs import LogsError, pin_logs
from tests.traffic.ingesting import NAMES, WHO, ingest, many, settled
from tests.traffic.sample import line, write_log


def test_only_new_and_changed_partitions_are_parsed(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)), NAMES[0])
    write_log(tmp_path, map(line, many(30, 20)), NAMES[2])
    first = ingest(tmp_path, cache)
    assert first[2] == [NAMES[0], NAMES[2]]
    again = ingest(tmp_path, cache, name="again")
    assert again == (first[0], first[1], [])
    assert (tmp_path / "again/messages.parquet").read_bytes() == (
        tmp_path / "out/messages.parquet"
    ).read_bytes()
    write_log(tmp_path, map(line, many(30, 25)), NAMES[2])
    write_log(tmp_path, map(line, many(5, 90)), NAMES[1])
    weekly = ingest(tmp_path, cache)
    assert weekly[2] == [NAMES[1], NAMES[2]]
    assert weekly[:2] == ingest(tmp_path)[:2]
    renamed = ingest(tmp_path, cache, rename={"app": "model"})
    assert len(renamed[2]) == 3, "other settings, other rows"


def test_the_cache_is_bounded_and_another_scope_leaves_nothing(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)))
    ingest(tmp_path, cache)
    assert len(list(cache.glob("*/*"))) == 1
    ingest(tmp_path, cache, max_line_bytes=600)
    assert len(list(cache.glob("*"))) == 1, "what was parsed with other settings or users is gone"
    ingest(tmp_path, cache, cache_bytes=0)
    assert not list(cache.glob("*/*"))


def test_a_half_written_entry_is_not_used_and_a_broken_one_does_no_harm(tmp_path):
    cache = tmp_path / "cache"
    write_log(tmp_path, map(line, many(30)))
    expected = ingest(tmp_path, cache)
    entry = next(cache.glob("*/*"))
    names = sorted(file.name for file in entry.iterdir())
    assert "partition.json" in names
    for name in names:
        (entry / name).unlink()  # as a kill in the middle of a removal leaves it
        shutil.copytree(entry, entry.with_name(f".{name}"))
        metrics, tables, parsed = ingest(tmp_path, cache)
        assert (metrics, tables) == expected[:2]
        assert parsed == ["date=2026-11-02/part-000.jsonl"]
        shutil.rmtree(entry)
        assert ingest(tmp_path, cache)[2] == parsed  # whole again


def test_two_runs_at_once_and_a_third_that_empties_the_cache(tmp_path):
    write_log(tmp_path, map(line, many(2000)), NAMES[0])
    write_log(tmp_path, map(line, many(2000, 1500)), NAMES[1])
    expected = ingest(tmp_path)[:2]
    roots, found, stop = [], [], threading.Event()
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        (root / "data").symlink_to(tmp_path / "data")
        roots.append(root)

    def empty():
        while not stop.is_set():
            for entry in (tmp_path / "cache").glob("*/*"):
                shutil.rmtree(entry, ignore_errors=True)

    threads = [
        threading.Thread(
            target=lambda root=root: found.extend(ingest(root, tmp_path / "cache")[:2] for _ in range(3))
        )
        for root in roots
    ]
    remover = threading.Thread(target=empty)
    for thread in (*threads, remover):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    remover.join()
    assert found == [expected] * 6


def test_a_cached_partition_does_not_need_its_file(tmp_path):
    """What was pinned was read: the file may since be gone or rewritten."""
    cache = tmp_path / "cache"
    path = write_log(tmp_path, map(line, many(30)))
    pinned = pin_logs("data/logs", tmp_path)["partitions"]
    expected = ingest(tmp_path, cache)[0]
    path.unlink()
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch-2", cache)
    assert ingestion.run(pinned, tmp_path / "out-2") == expected
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch-3", None)
    with pytest.raises(LogsError, match="cannot be read"):
        ingestion.run(pinned, tmp_path / "out-3")


def test_a_damaged_partition_leaves_nothing_in_the_cache(tmp_path):
    path = write_log(tmp_path, map(line, many(30)), NAMES[1])
    damaged = bytearray(path.read_bytes())
    damaged[-6] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(LogsError, match="damaged gzip"):
        ingest(tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))
    path.write_bytes(gzip.compress(b"{}\n"))
    pinned = pin_logs("data/logs", tmp_path)["partitions"]
    path.write_bytes(gzip.compress(b"{ }\n"))
    ingestion = Ingestion("data/logs", tmp_path, settled(), WHO, tmp_path / "scratch", tmp_path / "cache")
    with pytest.raises(LogsError, match="changed since it was pinned"):
        ingestion.run(pinned, tmp_path / "out")
