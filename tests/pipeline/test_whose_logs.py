"""Whose logs a generation reads stays what it was opened with, and real users and simulated ones do not mix."""

from datetime import timedelta

import orjson
import pytest

from flywheel_tasks.pipeline import generation as generations
from flywheel_tasks.pipeline import local
from flywheel_tasks.pipeline.generation_ids import GenerationError, current
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.documents import read_json, write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef
from tests.conftest import PROJECT
from tests.online import people
from tests.traffic.sample import events

BASE = load_settings(PROJECT / "params.yaml").base.policy
CONTROL = people.make_plan().arms[0].digest


@pytest.fixture
def workspace(tmp_path, make_workspace, monkeypatch):
    """A workspace with logs and a champion whose files nobody needs here; no generation is opened yet."""
    make_workspace(tmp_path)
    write_jsonl(events(), tmp_path / "data/logs/date=2026-11-02/part-000.jsonl")
    write_jsonl(events(), tmp_path / "data/own/date=2026-11-02/part-000.jsonl")
    open_registry("registry", tmp_path).bootstrap(model("base", CONTROL), by="test")
    monkeypatch.setattr(generations, "place_champion", lambda root, champion: None)
    return tmp_path


def model(generation, digest):
    dvc = DvcRef(path="models/base", md5="0" * 32)
    return ModelRef(generation=generation, digest=digest, dvc=dvc, code_version="x", data_version=BASE)


def change(root, old, new):
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new, 1))


def launch(root, generation):
    registry, shown = (
        open_registry("registry", root),
        {"model_digest": people.DIGEST, "verdict_digest": people.DIGEST},
    )
    registry.record_approval("launch", generation=generation, decision="approve", by="ada", **shown)
    plan, candidate = people.make_plan(generation), model(generation, people.DIGEST)
    registry.start_experiment(plan, candidate, by="ada", duration=timedelta(days=7))


def files_of(root):
    return {path: path.read_bytes() for path in (root / "inputs").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "source: simulated",
            "source: files",
            "g0001 was opened with logs.source simulated, and .* says files",
        ),
        (
            "location: data/logs",
            "location: s3://name:secret@chats/live",
            "g0001 was opened with logs.location data/logs, and params.yaml says chats/live: .* generation next",
        ),
    ],
)
def test_a_generation_goes_on_with_the_logs_that_it_was_opened_with_or_not_at_all(
    workspace, old, new, complaint
):
    generations.open_generation(workspace)
    before = files_of(workspace)
    change(workspace, old, new)
    with pytest.raises(GenerationError, match=complaint):
        generations.open_generation(workspace, generation="g0001", seed=5)
    with pytest.raises(GenerationError, match=complaint):
        local.run_generation(workspace, generation=None, seed=None, say=print)
    assert files_of(workspace) == before
    assert load_settings(workspace / "params.yaml").seed != 5
    change(workspace, new, old)
    assert generations.open_generation(workspace, generation="g0001") == "g0001"


def test_whose_logs_they_are_is_pinned_and_of_an_earlier_releases_generation_too(workspace):
    generations.open_generation(workspace)
    assert current(workspace)["logs_source"] == "simulated"
    bundle = next((workspace / "registry").rglob("g0001/inputs.json"))
    kept = orjson.loads(bundle.read_bytes())
    del kept["generation"]["logs_source"]
    bundle.write_bytes(orjson.dumps(kept))
    write_json(kept["generation"], workspace / "inputs/generation.json")
    generations.open_generation(workspace, generation="g0001")
    assert read_json(workspace / "inputs/generation.json") == kept["generation"] | {
        "logs_source": "simulated"
    }


def test_real_logs_are_opened_after_simulated_ones_that_were_not_launched(workspace):
    generations.open_generation(workspace)
    change(workspace, "location: data/logs", "location: data/own")
    change(workspace, "source: simulated", "source: files")
    assert generations.open_generation(workspace, generation="g0002") == "g0002"
    assert current(workspace)["logs_source"] == "files"


@pytest.mark.parametrize(("first", "then"), [("simulated", "files"), ("files", "simulated")])
def test_real_users_and_simulated_ones_do_not_mix_in_a_registry(workspace, first, then):
    change(workspace, "location: data/logs", "location: data/own")
    change(workspace, "source: simulated", f"source: {first}")
    generations.open_generation(workspace)
    launch(workspace, "g0001")
    assert generations.open_generation(workspace, generation="g0002") == "g0002", "more of the same kind"
    before = files_of(workspace)
    change(workspace, f"source: {first}", f"source: {then}")
    complaint = (
        f"g0003 would be of logs.source {then}, but g0001, .* registry, is of {first}: .* registry.location"
    )
    with pytest.raises(GenerationError, match=complaint):
        generations.open_generation(workspace, generation="g0003")
    with pytest.raises(GenerationError, match=complaint):
        local.simulate_traffic(workspace, "g0003", print)
    assert files_of(workspace) == before
    change(workspace, "location: registry", "location: another")
    open_registry("another", workspace).bootstrap(model("base", CONTROL), by="test")
    assert generations.open_generation(workspace, generation="g0003") == "g0003"


def test_real_logs_are_not_read_where_simulated_ones_lie(workspace):
    write_json({"runs": {}}, workspace / "data/logs/simulated.json")
    change(workspace, "source: simulated", "source: files")
    with pytest.raises(
        GenerationError, match=r"data/logs \(logs.location\) holds simulated traffic .* another folder"
    ):
        generations.open_generation(workspace)
    assert current(workspace) is None
