"""What a generation pins about user ids: the key by its fingerprint, and whom to forget, as of now."""

import pytest

from flywheel_tasks.pipeline import generation as generations
from flywheel_tasks.pipeline.generation_ids import current
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json, write_jsonl
from flywheel_tasks.storage.forgotten import open_forgotten
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef
from flywheel_tasks.traffic.identity import DEMO_FINGERPRINT, IdentityError, UserKey
from tests.conftest import PROJECT
from tests.traffic.sample import events

BASE = load_settings(PROJECT / "params.yaml").base.policy
SECRET = "0123456789abcdef" * 4
KEY = UserKey(SECRET)


@pytest.fixture
def workspace(tmp_path, make_workspace, monkeypatch):
    """A workspace with logs and a champion whose files nobody needs here."""
    make_workspace(tmp_path, {"logs.source": "files"})
    write_jsonl(events(), tmp_path / "data/logs/date=2026-11-02/part-000.jsonl")
    champion = ModelRef(
        generation="base",
        digest="sha256:" + "0" * 64,
        dvc=DvcRef(path="models/base", md5="0" * 32),
        code_version="x",
        data_version=BASE,
    )
    open_registry("registry", tmp_path).bootstrap(champion, by="test")
    monkeypatch.setattr(generations, "place_champion", lambda root, champion: None)
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    return tmp_path


def pinned(root):
    return read_json(root / "inputs/users.json")


def test_a_generation_pins_the_key_and_whom_to_forget(workspace):
    open_forgotten("registry", workspace).add(KEY.fingerprint, KEY.hashed("u1"))
    generations.open_generation(workspace)
    assert pinned(workspace) == {"key": KEY.fingerprint, "forgotten": [KEY.hashed("u1")]}
    everything = [path for path in workspace.rglob("*.json") if "flywheel_tasks" not in path.parts]
    assert not any(SECRET in path.read_text() for path in everything)


def test_who_is_forgotten_later_is_forgotten_in_older_generations_too(workspace):
    generations.open_generation(workspace)
    before = (workspace / "inputs/users.json").stat().st_mtime_ns
    generations.open_generation(workspace, generation="g0001")
    assert (workspace / "inputs/users.json").stat().st_mtime_ns == before, "nothing changed"
    open_forgotten("registry", workspace).add(KEY.fingerprint, KEY.hashed("u2"))
    generations.sync(workspace, "g0001")
    assert pinned(workspace)["forgotten"] == [KEY.hashed("u2")]


def test_returning_to_a_generation_needs_no_key(workspace, monkeypatch):
    generations.open_generation(workspace)
    monkeypatch.delenv("FLYWHEEL_USER_KEY")
    generations.sync(workspace, "g0001")
    assert pinned(workspace)["key"] == KEY.fingerprint


def test_another_key_than_that_of_the_last_generation_is_refused(workspace, monkeypatch):
    generations.open_generation(workspace)
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET[::-1])
    with pytest.raises(IdentityError, match=f"g0001 used {KEY.fingerprint}"):
        generations.open_generation(workspace, generation="g0002")
    monkeypatch.delenv("FLYWHEEL_USER_KEY")
    with pytest.raises(IdentityError, match="there is no key"):
        generations.open_generation(workspace, generation="g0002")
    assert current(workspace)["generation"] == "g0001"


def test_after_the_demo_a_team_starts_with_its_own_key(workspace, monkeypatch):
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("source: files", "source: simulated"))
    monkeypatch.delenv("FLYWHEEL_USER_KEY")
    generations.open_generation(workspace)
    assert pinned(workspace)["key"] == DEMO_FINGERPRINT
    params.write_text(params.read_text().replace("source: simulated", "source: files"))
    monkeypatch.setenv("FLYWHEEL_USER_KEY", SECRET)
    generations.open_generation(workspace, generation="g0002")
    assert pinned(workspace)["key"] == KEY.fingerprint
