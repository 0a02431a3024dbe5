"""A workspace as it is after the gate: a candidate, its verdict, a registry with a champion."""

from pathlib import Path

import pytest
import yaml

from flywheel_tasks.online.approval import registry_of, request_of
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef
from tests.conftest import build_workspace

MD5 = "0123456789abcdef0123456789abcdef.dir"
OVERRIDES = {"launch.traffic_share": 0.5, "ab.min_users_per_arm": 20}


def write_model(root: Path, text: str = "candidate") -> str:
    """Write models/policy and its line in dvc.lock; returns its digest."""
    folder = root / "models/policy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    lock = {"schema": "2.0", "stages": {"rl": {"cmd": "x", "outs": [{"path": "models/policy", "md5": MD5}]}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    return tree_digest(folder)


def write_verdict(root: Path, verdict: str = "pass", digest: str | None = None) -> None:
    """Write gate/verdict.json and gate/approval.md for the candidate."""
    digest = digest or tree_digest(root / "models/policy")
    failed = {
        "metric": "evaluate.win_rate",
        "value": 0.71,
        "outcome": "block",
        "reason": "win rate above 0.65",
    }
    reasons = [failed] if verdict != "pass" else [{**failed, "outcome": "pass", "reason": "win rate within"}]
    write_json(
        {"generation": "g0001", "verdict": verdict, "model_digest": digest, "reasons": reasons},
        root / "gate/verdict.json",
    )
    bound = (digest, file_digest(root / "gate/verdict.json"))
    (root / "gate/approval.md").write_text(
        "## Gate of g0001\n\n" + "".join(f"- `{item}`\n" for item in bound)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The workspace; nothing is approved yet."""
    build_workspace(tmp_path, OVERRIDES)
    champion = tmp_path / "inputs/champion"
    champion.mkdir(parents=True)
    (champion / "model.safetensors").write_text("champion")
    base = ModelRef(
        generation="base",
        digest=tree_digest(champion),
        dvc=DvcRef(path="models/base", md5=MD5),
        code_version="abc",
        data_version="base",
    )
    registry_of(tmp_path).bootstrap(base, by="setup")
    write_json(
        {"generation": "g0001", "champion": {"model": "base", "digest": base.digest}, "logs_digest": "x"},
        tmp_path / "inputs/generation.json",
    )
    write_json({"format": 1, "tables": {}}, tmp_path / "data/validated/profile.json")
    write_json(
        {"salt": "s", "shares": {}, "evaluated": [{"prompt_id": "p1"}]}, tmp_path / "data/split/record.json"
    )
    write_model(tmp_path)
    write_verdict(tmp_path)
    return tmp_path


def approve(root: Path, kind: str = "launch", decision: str = "approve") -> None:
    """Answer the question of the workspace."""
    from flywheel_tasks.online.approval import record_answer

    record_answer(root, request_of(root, kind), decision=decision, by="ada")


@pytest.fixture
def events(root: Path) -> list[dict]:
    """What the logs of the workspace say of a test; a test may write them as tables, too."""
    from tests.dags.small import ab_events, write_logs
    from tests.online.tables import PLAN

    found = ab_events(PLAN.model_dump(mode="json"), 200)
    write_logs(root, "date=2026-11-09", found)
    return found
