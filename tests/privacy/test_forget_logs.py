"""A user is forgotten: the raw logs, those of a running gateway too, and logs that cannot be read."""

import fcntl
import gzip
import shutil
from datetime import UTC, datetime

import pytest
import yaml

from flywheel_tasks.serving.turns import LoggedTurn, TurnIndex, owner_of
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.traffic import forget_logs
from flywheel_tasks.traffic.logs import LogsError
from tests.privacy.forgetting import (
    GONE,
    KEY,
    USERS,
    call,
    contents,
    everything,
    theirs,
)
from tests.traffic.sample import line, message

NOW = datetime(2026, 11, 3, tzinfo=UTC)


def test_raw_logs_are_rewritten_only_when_asked(workspace):
    def raw():
        data = (workspace / "data/logs/date=2026-11-02/a.jsonl").read_bytes()
        return (
            data + gzip.decompress((workspace / "data/logs/date=2026-11-03/b.jsonl.gz").read_bytes())
        ).splitlines()

    before = raw()
    call(workspace, GONE)
    assert raw() == before
    call(workspace, KEY.hashed(GONE), "--hashed", "--raw-logs")
    assert raw() == [one for one in before if b'"person-3"' not in one]
    assert len(raw()) == len(before) - 6


def test_raw_logs_that_write_the_id_under_an_old_name_are_rewritten_too(workspace):
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    settings["ingest"]["rename"] = {"author": "user_id"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    log = workspace / "data/logs/date=2026-11-02/a.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"user_id"', b'"author"'))
    before = log.read_bytes().splitlines()
    call(workspace, GONE, "--raw-logs")
    kept = [one for one in before if b'"person-3"' not in one]
    assert log.read_bytes().splitlines() == kept != before


def test_raw_logs_that_are_cut_or_gone_keep_nothing_from_being_forgotten(workspace):
    log = workspace / "data/logs/date=2026-11-03/b.jsonl.gz"
    log.write_bytes(log.read_bytes()[:-8])
    output = call(workspace, GONE, "--raw-logs")
    assert "date=2026-11-03/b.jsonl.gz" in output.split("cannot be read to their end")[1]
    assert "policy_train" in output.split("Models trained on")[1]
    assert not any(theirs(row) for rows in everything(workspace).values() for row in rows)
    shutil.rmtree(workspace / "data/logs")
    (workspace / "data/logs").mkdir()
    assert "Raw logs that hold the user (kept; --raw-logs rewrites them): none" in call(workspace, USERS[4])


def test_logs_that_cannot_be_listed_are_an_error_before_anything_is_changed(workspace):
    (workspace / "data/logs/astray.jsonl").write_text("{}")
    before = contents(workspace / "data")
    with pytest.raises(LogsError, match=r"astray\.jsonl is not where logs belong"):
        call(workspace, GONE)
    assert contents(workspace / "data") == before
    assert read_json(workspace / "inputs/users.json")["forgotten"] == []


def test_a_search_of_the_logs_that_fails_finds_the_user_listed_and_no_row_gone(workspace, monkeypatch):
    before = contents(workspace / "data")

    def fails(*_):
        raise LogsError("s3://chat: connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(forget_logs, "find", fails)
        with pytest.raises(LogsError, match="connection lost"):
            call(workspace, GONE)
    assert contents(workspace / "data") == before
    assert read_json(workspace / "inputs/users.json")["forgotten"] == [KEY.hashed(GONE)]
    assert "policy_train" in call(workspace, GONE).split("Models trained on")[1]
    assert not any(theirs(row) for rows in everything(workspace).values() for row in rows)


def test_what_a_gateway_has_not_sealed_and_its_index_of_turns_go_too(workspace):
    """A dead gateway's file is sealed and rewritten, its torn end deleted; a living one's is named."""
    served = workspace / "data/served/date=2026-11-03"
    served.mkdir(parents=True)
    rows = [{**row, "user_id": user} for user in (GONE, USERS[4]) for row in [message(1, "user", None)]]
    (served / ".open-dead.jsonl").write_bytes(b"".join(map(line, rows)))
    (served / ".torn-dead.jsonl").write_bytes(line(rows[0])[:-9])
    index = TurnIndex(workspace / ".flywheel/serve/turns.sqlite")
    index.add(
        [LoggedTurn(f"m-{user}", "c", None, "user", owner_of(user), b"x", NOW) for user in (GONE, USERS[4])]
    )
    living = served / ".open-living.jsonl"
    living.write_bytes(line(rows[0]))
    with living.open("rb+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        output = " ".join(call(workspace, GONE, "--raw-logs").split())
    assert "a running gateway has logged since its last segment" in output
    assert "Turns removed from the gateway's index, which is without texts: 1" in output
    assert sorted(path.name for path in served.iterdir()) == [".open-living.jsonl", "dead.jsonl"]
    assert (served / "dead.jsonl").read_bytes() == line(rows[1])
    assert (index.by_id(f"m-{GONE}"), index.by_id(f"m-{USERS[4]}") is None) == (None, False)
    output = " ".join(call(workspace, KEY.hashed(GONE), "--hashed", "--raw-logs").split())
    assert "digests of who said what" in output
    assert "running gateway" not in output
    index.close()
    assert all(GONE.encode() not in path.read_bytes() for path in served.iterdir())
