"""Ingestion of the logs under a folder, in tests."""

import shutil
from pathlib import Path

from flywheel_tasks.settings import Ingest
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.traffic.identity import DEMO_KEY, Identity, UserKey
from flywheel_tasks.traffic.ingest import Ingestion
from flywheel_tasks.traffic.logs import pin_logs
from tests.traffic.sample import message

KEY = UserKey(DEMO_KEY)
WHO = Identity(KEY, frozenset([KEY.hashed("forgotten")]))
NAMES = ("date=2026-11-02/a.jsonl", "date=2026-11-02/b.jsonl.gz", "date=2026-11-03/a.jsonl.gz")


def settled(**changes) -> Ingest:
    return Ingest(**{"max_line_bytes": 500, "rename": {}, "cache_bytes": 10**9, **changes})


def ingest(root: Path, cache: Path | None = None, name: str = "out", **changes):
    pinned = pin_logs("data/logs", root)
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    ingestion = Ingestion("data/logs", root, settled(**changes), WHO, scratch, cache)
    metrics = ingestion.run(pinned["partitions"], root / name)
    return metrics, {path.stem: read_rows(path) for path in (root / name).iterdir()}, ingestion.parsed


def many(count: int, start: int = 0):
    for k in range(start, start + count):
        number = (k * 7919) % 60
        extra = {"app": "ios"} if k % 3 else {}
        yield message(number, "user", None, event_id=f"e{k}", user_id=f"u{k % 50}", text=f"text {k}", **extra)
