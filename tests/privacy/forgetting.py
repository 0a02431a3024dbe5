"""A workspace after assembly with twelve users, one of whom is to be forgotten; what tests of it share."""

from typer.testing import CliRunner

from flywheel_tasks.cli.app import app
from flywheel_tasks.conversations.schemas import PROMPTS
from flywheel_tasks.curation.tables import DUPLICATES
from flywheel_tasks.pipeline import trained_on
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.storage.documents import read_jsonl, write_json, write_jsonl
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.traffic.identity import UserKey, pin_users
from flywheel_tasks.traffic.logs import pin_logs
from tests.conftest import build_workspace
from tests.curation.rows import prompt
from tests.traffic.sample import card, line, message, signal, write_log

SECRET = "0123456789abcdef" * 4
KEY = UserKey(SECRET)
USERS = [f"person-{n}" for n in range(12)]
GONE = USERS[3]


def talk(number: int):
    """A conversation of two exchanges of one user, with a signal, and a line that is broken."""
    of = {"user_id": USERS[number], "conversation_id": f"c{number}"}

    def said(place, role, parent):
        ids = {"event_id": f"e{number}-{place}", "message_id": f"m{number}-{place}"}
        above = None if parent is None else f"m{number}-{parent}"
        return message(place + 1, role, None, **of, **ids, parent_id=above, text=f"words {place} of {number}")

    yield said(0, "user", None)
    yield said(1, "assistant", 0)
    yield said(2, "user", 1)
    yield said(3, "assistant", 2)
    yield signal(1, 0, **of, event_id=f"e{number}-s", message_id=f"m{number}-1")
    yield {**said(4, "user", 3), "role": "robot"}


def run_stages(root):
    write_json(pin_logs("data/logs", root), root / "inputs/logs.json")
    for stage in ("ingest", "validate", "assemble"):
        run_stage(stage, root)


def build(root):
    shares = dict.fromkeys(trained_on.SPLITS, 0.2)
    build_workspace(
        root, {"logs.source": "files", "validate.max_quarantine_share": 0.5, "split.shares": shares}
    )
    events = [card(), *(event for number in range(len(USERS)) for event in talk(number))]
    write_log(root, map(line, events[:40]), "date=2026-11-02/a.jsonl")
    write_log(root, map(line, events[40:]), "date=2026-11-03/b.jsonl.gz")
    write_json(pin_users(KEY.fingerprint, set()), root / "inputs/users.json")
    write_json({"generation": None, "profile": None}, root / "inputs/profile.json")
    run_stages(root)
    tasks = [
        {"task_id": f"t{n}", "prompt_id": f"p{n}", "user_id": KEY.hashed(user)}
        for n, user in enumerate(USERS)
    ]
    write_jsonl(tasks, root / "data/annotation/batch.jsonl")
    write_jsonl([{"task_id": f"t{n}", "answer": n} for n in range(12)], root / "data/annotation/labels.jsonl")
    repeats = [{**dict.fromkeys(DUPLICATES.names), "dropped_id": f"p{n}", "kept_id": "p7"} for n in range(6)]
    repeats.append({**repeats[0], "dropped_id": "p0", "kept_id": "p3", "kept_text": "words"})
    write_rows(repeats, DUPLICATES, root / "data/curated/duplicates.parquet")
    for split in trained_on.SPLITS:
        rows = [{**prompt(f"p{n}"), "user_id": KEY.hashed(user), "turn": 0} for n, user in enumerate(USERS)]
        write_rows(rows if split == "policy_train" else [], PROMPTS, root / f"data/split/{split}.parquet")
    (root / "models/policy").mkdir(parents=True)
    (root / "models/policy/weights").write_text("weights")
    return root


def everything(root):
    """All rows of all tables, by path."""
    found = {}
    for path in sorted((root / "data").rglob("*")):
        if path.suffix == ".parquet":
            found[str(path.relative_to(root))] = read_rows(path)
        elif path.suffix == ".jsonl" and "logs" not in path.parts:
            found[str(path.relative_to(root))] = list(read_jsonl(path))
    return found


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def call(root, *words):
    done = CliRunner().invoke(app, ["forget", *words, "--root", str(root)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def theirs(row):
    text = str(row)
    number = USERS.index(GONE)
    return KEY.hashed(GONE) in text or any(
        f"'{mark}{number}" in text.replace("-", "'") for mark in ("e", "m", "c", "t", "p")
    )
