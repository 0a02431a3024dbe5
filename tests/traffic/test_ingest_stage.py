"""The stage as a whole: from a bucket as from a folder, and killed at any point and run again."""

import shutil
import signal as signals
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.traffic.identity import DEMO_KEY, UserKey, pin_users
from flywheel_tasks.traffic.logs import LogsError, pin_logs
from tests.conftest import PROJECT, build_workspace
from tests.traffic.sample import card, events, exposure, line, message, write_log

KEY = UserKey(DEMO_KEY)
DAYS = ("2026-11-02", "2026-11-03", "2026-11-04")


def write_logs(root: Path) -> None:
    """Three partitions of three kinds, with a repeat across two of them and a broken line."""
    talk = [
        message(n, "user" if n % 2 else "assistant", n - 1 or None, event_id=f"e{n}") for n in range(1, 40)
    ]
    log = [*events(), *talk]
    write_log(root, [*map(line, log[:20]), b"{nonsense\n"], f"date={DAYS[0]}/a.jsonl")
    write_log(root, map(line, [*log[20:], log[3]]), f"date={DAYS[1]}/b.jsonl.gz")
    path = root / "data/logs" / f"date={DAYS[2]}" / "c.parquet"
    path.parent.mkdir(parents=True)
    rows = [exposure(event_id=f"x{n}", user_id=f"u{n}") for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def prepare(root: Path, location: str = "data/logs") -> Path:
    build_workspace(root, {"logs.source": "simulated", "logs.location": location})
    write_json(pin_users(KEY.fingerprint, set()), root / "inputs/users.json")
    write_json(pin_logs(location, root), root / "inputs/logs.json")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workspace after an undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLYWHEEL_USER_KEY")
        root = tmp_path_factory.mktemp("whole")
        write_logs(root)
        run_stage("ingest", prepare(root))
        yield root


@pytest.fixture(autouse=True)
def demo_key(monkeypatch):
    monkeypatch.delenv("FLYWHEEL_USER_KEY", raising=False)


def outputs(root: Path) -> dict[str, bytes]:
    """The bytes of all tables, and the metrics."""
    found = {path.name: path.read_bytes() for path in (root / "data/ingested").iterdir()}
    return {**found, "metrics": (root / "metrics/ingest.json").read_bytes()}


def cached(root: Path) -> dict[str, bytes]:
    """The files of all entries of the cache; temporary folders are none."""
    home = root / ".flywheel/cache/ingest"
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(home).parts)
    }


def test_a_bucket_gives_the_bytes_that_a_folder_gives(whole, s3_server, tmp_path, capsys):
    s3_server.create_bucket(Bucket="chat")
    for path in sorted((whole / "data/logs").rglob("*.*")):
        name = path.relative_to(whole / "data/logs").as_posix()
        if path.is_file():
            s3_server.put_object(Bucket="chat", Key=f"live/{name}", Body=path.read_bytes())
    root = prepare(tmp_path, "s3://chat/live")
    run_stage("ingest", root)
    assert "3 of 3 partitions parsed" in capsys.readouterr().out
    assert outputs(root) == outputs(whole)
    assert read_json(root / "metrics/ingest.json")["duplicates"] == 1

    before = outputs(root)
    s3_server.put_object(
        Bucket="chat", Key=f"live/date={DAYS[2]}/late.jsonl", Body=line(card(event_id="late"))
    )
    write_json(pin_logs("s3://chat/live", root), root / "inputs/logs.json")
    run_stage("ingest", root)
    assert "1 of 4 partitions parsed" in capsys.readouterr().out, "what is known is not read again"
    assert read_json(root / "metrics/ingest.json")["accepted"]["card"] == 2

    s3_server.put_object(
        Bucket="chat", Key=f"live/date={DAYS[2]}/late.jsonl", Body=line(card(event_id="other"))
    )
    shutil.rmtree(root / ".flywheel/cache")
    with pytest.raises(LogsError, match=r"late\.jsonl changed since it was pinned"):
        run_stage("ingest", root)
    s3_server.delete_object(Bucket="chat", Key=f"live/date={DAYS[2]}/late.jsonl")
    with pytest.raises(LogsError, match=r"late\.jsonl cannot be read"):
        run_stage("ingest", root)
    write_json(pin_logs("s3://chat/live", root), root / "inputs/logs.json")
    run_stage("ingest", root)
    assert outputs(root) == before


# The process kills itself at the nth call of a function: no clock, so always at the same point.
_CHILD = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
module, path, at = sys.argv[2], sys.argv[3].split("."), int(sys.argv[4])
owner = import_module(module)
for name in path[:-1]:
    owner = getattr(owner, name)
inner, calls = getattr(owner, path[-1]), []
def counted(*arguments, **named):
    calls.append(1)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*arguments, **named)
setattr(owner, path[-1], counted)
from flywheel_tasks.pipeline.stage import run_stage
run_stage("ingest", Path(sys.argv[1]))
"""
POINTS = {
    "a partition is half parsed": ("flywheel_tasks.traffic.partition", "PartitionWriter._write_run", 3),
    "an entry of the cache is half made": ("flywheel_tasks.traffic.partition_cache", "os.link", 8),
    "tables are half merged": ("flywheel_tasks.traffic.ingest", "write_events", 2),
    "outputs are half in place": ("flywheel_tasks.pipeline.stage_io", "replace", 2),
}


@pytest.mark.parametrize("point", list(POINTS))
def test_killed_and_run_again_it_gives_the_same_bytes(whole, tmp_path, point):
    shutil.copytree(whole / "data/logs", tmp_path / "data/logs")
    root = prepare(tmp_path)
    module, path, at = POINTS[point]
    command = [sys.executable, "-c", _CHILD, str(root), module, path, str(at)]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True)
    assert done.returncode == -signals.SIGKILL, done.stderr.decode()
    assert not (root / "metrics/ingest.json").exists()
    for name, data in cached(root).items():
        assert cached(whole)[name] == data, "an entry that a killed run left is whole"
    run_stage("ingest", root)
    assert outputs(root) == outputs(whole)
    assert cached(root) == cached(whole)
    assert not (root / ".flywheel/tmp/ingest").exists()
    assert orjson.loads(outputs(root)["metrics"])["quarantined"] == {"total": 1, "not_json": 1}
