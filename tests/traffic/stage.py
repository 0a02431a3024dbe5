"""The stage ``ingest`` on a log of a test, and whether its books balance."""

from pathlib import Path

from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.traffic.identity import pin_users
from flywheel_tasks.traffic.ingest import run
from flywheel_tasks.traffic.logs import pin_logs
from tests.traffic.ingesting import KEY


def ingest(root: Path, make_io, forgotten=(), **overrides):
    stage_io = make_io("ingest", root, overrides)
    write_json(
        pin_users(KEY.fingerprint, {KEY.hashed(user) for user in forgotten}), root / "inputs/users.json"
    )
    write_json(pin_logs("data/logs", root), root / "inputs/logs.json")
    metrics = run(stage_io)
    return metrics, stage_io.out("data/ingested")


def adds_up(metrics) -> bool:
    for counts in (metrics["accepted"], metrics["quarantined"]):
        if sum(number for name, number in counts.items() if name != "total") != counts["total"]:
            return False
    placed = metrics["accepted"]["total"] + metrics["quarantined"]["total"] + metrics["duplicates"]
    placed += metrics["forgotten"] + metrics.get("not_sampled", 0)
    return placed == metrics["read"]
