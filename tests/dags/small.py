"""A workspace whose stages take no time: real DVC, real gate file, real launch stage, no training."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flywheel_tasks.online.assignment import assign
from flywheel_tasks.storage.documents import write_jsonl
from flywheel_tasks.storage.registry_state import Experiment

DVC_YAML = """
stages:
  base_model:
    desc: The first model
    cmd: exec flywheel stage base_model
    params: [base]
    outs: [models/base]
    meta: {run: "small_stages:base_model"}
  train:
    desc: A model of this generation
    cmd: exec flywheel stage train
    deps: [inputs/generation.json, inputs/champion, models/base]
    params: [seed]
    outs: [models/policy, data/validated/profile.json, data/split/record.json]
    meta: {run: "small_stages:train", queue: gpu}
  gate:
    desc: The verdict that the file wish.txt asks for
    cmd: exec flywheel stage gate
    deps: [inputs/generation.json, models/policy, wish.txt]
    outs: [gate/verdict.json, gate/approval.md]
    meta: {run: "small_stages:gate"}
  launch:
    desc: The plan of the A/B test
    cmd: exec flywheel stage launch
    deps:
      [inputs/generation.json, gate/verdict.json, models/policy, data/validated/profile.json, data/split/record.json]
    params: [launch, ab, registry, logs]
    outs: [launch/plan.json, launch/profile.json, launch/split.json]
    metrics: [metrics/launch.json]
    meta: {run: "flywheel_tasks.online.launch:run"}
"""

STAGES = """
import time
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json, write_json

def _model(folder, text):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(text)

def base_model(io):
    _model(io.out("models/base"), "base")
    return {}

def train(io):
    if (io.root / "slow").exists():
        time.sleep(600)
    generation = read_json(io.dep("inputs/generation.json"))["generation"]
    _model(io.out("models/policy"), f"{generation} {io.settings.seed}")
    write_json({"format": 1, "tables": {}}, io.out("data/validated/profile.json"))
    write_json({"salt": "s", "shares": {}, "evaluated": []}, io.out("data/split/record.json"))
    return {}

def gate(io):
    generation = read_json(io.dep("inputs/generation.json"))["generation"]
    passed = io.dep("wish.txt").read_text().strip() == "pass"
    reason = {"metric": "evaluate.win_rate", "value": 0.55 if passed else 0.71,
              "block": {"min": 0.45, "max": 0.65}, "outcome": "pass" if passed else "block",
              "reason": "win rate 0.55 is within 0.45 to 0.65" if passed
              else "win rate 0.71 is above 0.65: the model fits the judge, not the users"}
    write_json({"generation": generation, "verdict": "pass" if passed else "block",
                "model_digest": tree_digest(io.dep("models/policy")), "reasons": [reason]},
               io.out("gate/verdict.json"))
    text = "## Gate of %s\\n\\n| metric | value | limit |\\n|---|---|---|\\n" % generation
    text += "| evaluate.win_rate | %s | 0.45 to 0.65 |\\n\\nA reply: {{ 7 * 7 }} {%% raw\\n" % reason["value"]
    bound = (tree_digest(io.dep("models/policy")), file_digest(io.out("gate/verdict.json")))
    text += "\\n" + "".join("- `%s`\\n" % item for item in bound)
    io.out("gate/approval.md").write_text(text)
    return {}
"""

OVERRIDES = {
    "logs.source": "files",
    "launch.traffic_share": 0.5,
    "ab.duration_minutes": 0.15,
    "ab.late_logs_hours": 0.02,  # 72 s: on a busy machine the test is over before its logs are written
    "ab.planned_users": 200,
    "ab.min_users_per_arm": 20,
    "airflow.schedule": None,
    "airflow.retries": 1,
    "airflow.retry_delay_seconds": 1,
}
_START = datetime(2026, 11, 2, 9, tzinfo=UTC)


def _dvc(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, capture_output=True)


def make_small(root: Path) -> Path:
    """Turn a copy of the project's workspace into one with quick stages, a DVC remote and some logs."""
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "small_stages.py").write_text(STAGES)
    (root / "wish.txt").write_text("pass\n")
    remote = root.parent / "remote"
    remote.mkdir()
    _dvc(root, "init", "--no-scm", "--quiet")
    _dvc(root, "remote", "add", "--default", "local", str(remote))
    card = {"card_id": "c1", "name": "Ada", "traits": [], "instructions": []}
    write_logs(root, "date=2026-11-02", [_event("card", "card-1", _START, **card)])
    return root


def _event(kind: str, name: str, at: datetime, /, **fields: object) -> dict[str, object]:
    time = at.isoformat().replace("+00:00", "Z")
    return {"event_id": name, "type": kind, "time": time, "source": "user", **fields}


def write_logs(root: Path, day: str, events: list[dict[str, object]]) -> None:
    """Write one partition of raw logs."""
    write_jsonl(events, root / "data" / "logs" / day / "part-000.jsonl")


def write_ab_logs(root: Path, experiment: Experiment, users: int = 160, *, harmful: bool = False) -> None:
    """Write what the users of both arms of a running A/B test do at its start; the candidate's write a little more.

    Of a harmful candidate nobody wants a second reply.
    """
    start = experiment.started_at
    plan = experiment.plan.model_dump(mode="json")
    minute = timedelta(milliseconds=50)
    events = ab_events(plan, users, start=start, name=plan["experiment"], minute=minute, harmful=harmful)
    write_logs(root, f"date={start:%Y-%m-%d}", events)


def ab_events(
    plan: dict,
    users: int,
    *,
    start: datetime = _START + timedelta(days=7),
    name: str = "",
    minute: timedelta = timedelta(minutes=1),
    harmful: bool = False,
) -> list[dict[str, object]]:
    """Exposures and messages of an A/B test, in which one user in four never writes; ``name`` is part of the ids.

    A harmful candidate's users write what its first reply answers, and no more.
    """
    events: list[dict[str, object]] = []
    for number in range(users):
        user = f"user-{number:04d}"
        arm = assign(plan, user)
        if arm is None:
            continue
        visit = f"{plan['experiment']}-{name}{user}"
        exposure = {"user_id": user, "experiment": plan["experiment"], "arm": arm}
        events.append(_event("exposure", f"{visit}-x", start, **exposure))
        turns = 0 if number % 4 == 0 else 1 + number % 3 + (arm == "candidate")
        silenced = harmful and arm == "candidate"
        turns = min(turns, 1) if silenced else turns
        for turn in range(turns):
            talk = {"conversation_id": visit, "user_id": user, "card_id": "c1", "parent_id": None}
            asked, told = f"{visit}-{turn}-u", f"{visit}-{turn}-a"
            at = start if silenced else start + (2 * turn + 1) * minute
            events.append(
                _event("message", asked, at, message_id=asked, role="user", text="hi", model=None, **talk)
            )
            reply = talk | {
                "role": "assistant",
                "text": "hi",
                "model": arm,
                "latency_ms": 900 + 10 * (number % 5),
            }
            events.append(_event("message", told, at, message_id=told, **reply))
            if (number + turn) % 5 == 0:
                signal = {"conversation_id": visit, "message_id": told, "user_id": user, "value": None}
                events.append(_event("signal", f"{told}-s", at, signal="thumb_up", **signal))
    return json.loads(json.dumps(events))
