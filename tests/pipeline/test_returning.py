"""Returning to a generation puts its inputs right, whatever the opening of another one has left there."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import orjson
import pytest

from flywheel_tasks.pipeline import champion_files, dvc_locks, generation_lock, local, runner
from flywheel_tasks.pipeline import generation as generations
from flywheel_tasks.pipeline.forgetting import nobody_else
from flywheel_tasks.pipeline.generation_ids import BusyError, GenerationError, current
from flywheel_tasks.policy.prompts import PromptError
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage import digests
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json, write_jsonl
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import DvcRef, ModelRef, RegistryError
from tests.conftest import PROJECT
from tests.traffic.sample import events

BASE = load_settings(PROJECT / "params.yaml").base.policy
FIRST, SECOND = "1" * 32, "2" * 32  # DVC's hashes of two champions


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(generation_lock, "_PATIENCE", 0.0)


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Files that DVC was asked for; it takes them from ``dvc/<hash>``."""
    asked = []

    def bring(root, target):
        pointer = (root / target).read_text()
        asked.append(target)
        out = root / target.removesuffix(".dvc")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "dvc" / (FIRST if FIRST in pointer else SECOND), out)

    monkeypatch.setattr(runner, "bring", bring)
    return asked


@pytest.fixture
def workspace(tmp_path, make_workspace, brought):
    """A workspace in which g0001 was opened from the first champion."""
    make_workspace(tmp_path, {"logs.source": "files"})
    write_jsonl(events(), tmp_path / "data/logs/date=2026-11-02/part-000.jsonl")
    for md5 in (FIRST, SECOND):
        (tmp_path / "dvc" / md5).mkdir(parents=True)
        (tmp_path / "dvc" / md5 / "model.safetensors").write_text(md5)
    open_registry("registry", tmp_path).bootstrap(model(tmp_path, FIRST), by="test")
    generations.open_generation(tmp_path)
    brought.clear()
    return tmp_path


def check_that_opening_waits_for(holder, workspace):
    """A generation is not opened while something holds the workspace, and is afterwards."""
    with ThreadPoolExecutor(1) as pool:
        with holder:
            opening = pool.submit(generations.open_generation, workspace, generation="g0002")
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)
            assert current(workspace)["generation"] == "g0001"
        assert opening.result(timeout=60) == "g0002"


def model(root, md5):
    return ModelRef(
        generation="base",
        digest=tree_digest(root / "dvc" / md5),
        dvc=DvcRef(path="models/base", md5=md5),
        code_version="x",
        data_version=BASE,
    )


def contents(root):
    files = [path for path in (root / "inputs").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in [*files, root / "params.yaml"]}


def champion(root):
    return (root / "inputs/champion/model.safetensors").read_text()


def test_a_killed_opening_leaves_no_other_champion_and_no_other_logs(workspace, brought):
    before = {path.name: path.read_bytes() for path in (workspace / "inputs").glob("*.json")}
    champion_files.place_champion(workspace, model(workspace, SECOND))
    for name in ("logs.json", "profile.json", "splits.json"):
        write_json({"of": "another generation"}, workspace / "inputs" / name)
    assert champion(workspace) == SECOND
    generations.open_generation(workspace, generation="g0001")
    assert champion(workspace) == FIRST
    assert FIRST in (workspace / "inputs/champion.dvc").read_text()
    assert {path.name: path.read_bytes() for path in (workspace / "inputs").glob("*.json")} == before


def test_a_broken_named_set_is_found_before_anything_is_done(workspace):
    before = {path: path.read_bytes() for path in (workspace / "inputs").glob("*.json")}
    with (workspace / "sets/safety.jsonl").open("a") as file:
        file.write('{"id": null}\n')
    with pytest.raises(PromptError, match=r"sets/safety\.jsonl:17: "):
        generations.open_generation(workspace, generation="g0007")
    assert "g0007" not in open_registry("registry", workspace).generations()
    assert {path: path.read_bytes() for path in (workspace / "inputs").glob("*.json")} == before
    generations.open_generation(workspace, generation="g0001")  # what is begun goes on


def test_another_base_model_is_refused_while_the_first_one_is_champion(workspace):
    params = workspace / "params.yaml"
    before = {path: path.read_bytes() for path in (workspace / "inputs").glob("*.json")}
    opened = params.read_text()
    params.write_text(opened.replace(f"policy: {BASE}", "policy: org/larger"))
    complaint = f"base.policy is org/larger, but the champion is still {BASE}, .* another registry.location"
    for generation in ("g0001", "g0002"):
        with pytest.raises(GenerationError, match=complaint):
            generations.open_generation(workspace, generation=generation)
    assert {path: path.read_bytes() for path in (workspace / "inputs").glob("*.json")} == before
    promoted = model(workspace, FIRST).model_copy(update={"generation": "g0001", "data_version": "sha256:0"})
    champion_files.refuse_other_base(promoted, load_settings(params))
    params.write_text(opened)
    assert generations.open_generation(workspace, generation="g0002") == "g0002"


def test_a_pointer_that_names_another_champion_is_put_right_too(workspace):
    pointer = workspace / "inputs/champion.dvc"
    pointer.write_text(pointer.read_text().replace(FIRST, SECOND))
    generations.open_generation(workspace, generation="g0001")
    assert FIRST in pointer.read_text()


def test_where_nothing_changed_dvc_is_not_asked_and_nothing_is_hashed_twice(workspace, brought, monkeypatch):
    read, plain = [], digests._read_digest
    monkeypatch.setattr(digests, "_REMEMBERED_BYTES", 1)  # each file is as large as a model
    monkeypatch.setattr(digests, "_read_digest", lambda path: read.append(path.name) or plain(path))
    digests._remembered.cache_clear()
    before = {path: path.stat().st_mtime_ns for path in (workspace / "inputs").rglob("*")}
    generations.open_generation(workspace, generation="g0001")
    generations.open_generation(workspace, generation="g0001")
    assert brought == []
    assert read.count("model.safetensors") == 1
    assert {path: path.stat().st_mtime_ns for path in (workspace / "inputs").rglob("*")} == before
    digests._remembered.cache_clear()


def test_a_worker_that_holds_another_generation_is_brought_to_the_runs(workspace, brought):
    generations.open_generation(workspace, generation="g0002")
    assert current(workspace)["generation"] == "g0002"
    params = workspace / "params.yaml"
    opened = params.read_text()
    params.write_text(opened.replace("seed: 20261102", "seed: 3"))
    generations.hold(workspace, "g0001")
    assert current(workspace)["generation"] == "g0001"
    assert params.read_text() == opened
    generations.hold(workspace, "g0002", seed=9)
    assert load_settings(params).seed == 9
    assert read_json(workspace / "inputs/generation.json")["generation"] == "g0002"


def test_a_simulation_that_is_killed_leaves_no_other_generations_name(workspace, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(local.subprocess, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        local.simulate_traffic(workspace, "g0002", print)  # its users talk to inputs/champion
    assert current(workspace) is None


def test_inputs_are_not_changed_under_a_dvc_that_works(workspace):
    generations.open_generation(workspace, generation="g0002")
    with (
        dvc_locks.at_work(workspace),
        pytest.raises(BusyError, match="holds g0002, not g0001, and DVC is at work"),
    ):
        generations.hold(workspace, "g0001")
    with dvc_locks.at_work(workspace):
        generations.hold(workspace, "g0002")  # its own generation
        generations.hold(workspace, "g0002", seed=load_settings(workspace / "params.yaml").seed)
        with pytest.raises(BusyError, match="with a seed that is not 9, and DVC is at work"):
            generations.hold(workspace, "g0002", seed=9)
    assert current(workspace)["generation"] == "g0002"
    assert load_settings(workspace / "params.yaml").seed != 9


@pytest.mark.parametrize("generation", [None, "g0001", "g0002"])
def test_no_generation_is_opened_under_a_dvc_that_works(workspace, generation):
    """DVC would write down that a stage of g0001 has read what is pinned for the other one."""
    registry = open_registry("registry", workspace)
    before = contents(workspace)
    with (
        dvc_locks.at_work(workspace),
        pytest.raises(BusyError, match=r"DVC is at work in .*nothing was changed"),
    ):
        generations.open_generation(workspace, generation=generation, seed=9)
    assert contents(workspace) == before
    assert registry.generations() == ["g0001"]
    assert generations.open_generation(workspace, generation=generation) == (generation or "g0002")


def test_a_dvc_that_ends_within_seconds_is_waited_for(workspace, monkeypatch):
    """As one whose runner was killed a moment ago."""
    monkeypatch.setattr(generation_lock, "_PATIENCE", 60.0)
    check_that_opening_waits_for(dvc_locks.at_work(workspace), workspace)


def test_neither_simulated_users_nor_a_person_put_other_inputs_under_a_dvc_that_works(workspace):
    generations.open_generation(workspace, generation="g0002")
    before = contents(workspace)
    with dvc_locks.at_work(workspace):
        with pytest.raises(BusyError, match="the inputs of g0003"):
            local.simulate_traffic(workspace, "g0003", print)
        with pytest.raises(BusyError, match="the inputs of g0001"):
            generations.sync(workspace, "g0001")
    assert contents(workspace) == before


@pytest.mark.parametrize("before", ["gate", "launch"])
def test_a_run_does_not_go_on_with_another_generation_that_was_opened_meanwhile(
    workspace, monkeypatch, before
):
    """Its name would stand above the other's data and models."""
    reproduced = []

    def reproduce(root, target):
        reproduced.append(target)
        if before == "launch" or target != "gate":
            generations.open_generation(root, generation="g0002")

    monkeypatch.setattr(runner, "reproduce", reproduce)
    monkeypatch.setattr(local, "record", lambda *_: None)
    monkeypatch.setattr(local, "_answer", lambda *_: SimpleNamespace(decision="approve"))
    monkeypatch.setattr("flywheel_tasks.annotation.round_trip.labels_ready", lambda _: {"enough": True})
    if before == "gate":
        text = (workspace / "params.yaml").read_text()
        changed = text.replace("annotator: simulated", "annotator: files")
        assert changed != text
        (workspace / "params.yaml").write_text(changed)
    write_json({"verdict": "pass"}, workspace / "gate/verdict.json")
    with pytest.raises(GenerationError, match=r"holds g0002 by now, not g0001.*run --id g0001"):
        local.run_generation(workspace, generation="g0001", seed=None, say=print)
    assert before not in reproduced


def test_the_runs_seed_is_written_where_the_generation_is_held_already(workspace):
    generations.hold(workspace, "g0001", seed=9)
    assert load_settings(workspace / "params.yaml").seed == 9
    generations.hold(workspace, "g0001")
    assert load_settings(workspace / "params.yaml").seed == 9, "none was asked for"


@pytest.mark.parametrize("seed", [None, 7])
def test_a_worker_that_is_killed_on_its_way_to_another_generation_holds_none(workspace, monkeypatch, seed):
    generations.open_generation(workspace, generation="g0002")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(generations.reward_model_pin, "pin", killed)  # the champion is in place by then
        with pytest.raises(KeyboardInterrupt):
            generations.hold(workspace, "g0001", seed)
    assert current(workspace) is None
    generations.hold(workspace, "g0002", seed)
    assert current(workspace)["generation"] == "g0002"


def test_an_opening_that_is_killed_leaves_no_other_generations_name(workspace, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(generations.reward_model_pin, "launched", killed)
        with pytest.raises(KeyboardInterrupt):
            generations.open_generation(workspace, generation="g0002")
    assert current(workspace) is None
    assert generations.open_generation(workspace) == "g0002"


def test_a_generation_that_nobody_opened_cannot_be_held(workspace):
    with pytest.raises(RegistryError, match="g0009"):
        generations.hold(workspace, "g0009")
    assert current(workspace)["generation"] == "g0001"


def test_files_that_are_not_the_champion_are_an_error_and_the_generation_is_not_entered(workspace):
    generations.open_generation(workspace, generation="g0002")
    (workspace / "inputs/champion/model.safetensors").write_text("damaged")
    (workspace / "dvc" / FIRST / "model.safetensors").write_text("damaged")
    with pytest.raises(GenerationError, match="inputs/champion is sha256:"):
        generations.hold(workspace, "g0001")
    assert current(workspace) is None


def test_no_generation_is_opened_while_somebody_is_forgotten(workspace):
    """The user would be in the logs that it pins."""
    check_that_opening_waits_for(nobody_else(workspace), workspace)


def test_settings_of_another_release_never_take_the_place_of_readable_ones(workspace):
    """Every later command would fail on them, the workers' and the DAG's too."""
    bundle = next((workspace / "registry").rglob("g0001/inputs.json"))
    kept = orjson.loads(bundle.read_bytes())
    kept["params"] = kept["params"].replace("  newest_days:", "  newest_weeks:")
    bundle.write_bytes(orjson.dumps(kept))
    before = (workspace / "params.yaml").read_text()
    with pytest.raises(GenerationError, match=r"g0001 was opened by another release.*\n?.*newest_"):
        generations.sync(workspace, "g0001")
    assert (workspace / "params.yaml").read_text() == before
    assert current(workspace)["generation"] == "g0001"
    assert not list(workspace.glob(".params*"))
