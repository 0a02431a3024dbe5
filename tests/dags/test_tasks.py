"""Each task works on what its run has made, or fails: without a server, and with DVC only where it matters."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flywheel_tasks.pipeline import generation, runner
from flywheel_tasks.pipeline.generation_ids import BusyError, current
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.objects import open_store
from flywheel_tasks.storage.registry import open_registry
from flywheel_tasks.storage.registry_state import RegistryError
from flywheel_tasks.storage.tables import write_rows
from tests.conftest import PROJECT, build_workspace
from tests.dags.small import OVERRIDES, make_small

pytestmark = pytest.mark.usefixtures("airflow_home")
PARAMS = {"generation": None, "seed": None, "force": []}


class Run:
    """A run of the DAG: what its tasks have told each other."""

    def __init__(self, generation: str) -> None:
        self.told: dict[tuple[str, str], Any] = {("choose_generation", "return_value"): generation}

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        return self.told.get((task_ids, key))

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.told["pushed", key] = value

    def stage(self, name: str, **params: Any) -> dict[str, Any]:
        """Run a stage; what it pushes is told under its name."""
        from flywheel_dag import tasks

        made = tasks.run_stage(self, name, PARAMS | params, "run-1")
        self.told[name, "return_value"] = made
        if name == "label":
            self.told["label", "labels"] = self.told["pushed", "labels"]
        return made


def part(hashes: dict[str, str]) -> dict[str, Any]:
    """What dvc.lock says of a stage that has made this, by path."""
    return {"outs": [{"path": path, "md5": md5} for path, md5 in hashes.items()]}


HASHES = {"gate/verdict.json": "v1", "gate/approval.md": "a1"}


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace after the gate of g0001 has blocked its model, which was trained on one user's data."""
    from tests.online.conftest import write_model, write_verdict

    build_workspace(tmp_path)
    write_model(tmp_path)
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    lock["stages"]["gate"] = part(HASHES)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    write_verdict(tmp_path, "block")
    write_json({"generation": "g0001"}, tmp_path / "inputs/generation.json")
    (tmp_path / "data/split").mkdir(parents=True)
    import pyarrow as pa

    write_rows(
        [{"user_id": "u_1"}],
        pa.schema([("user_id", pa.string())]),
        tmp_path / "data/split/policy_train.parquet",
    )
    monkeypatch.setenv("FLYWHEEL_ROOT", str(tmp_path))
    return tmp_path


def run_after_gate(made: dict[str, str] | None = None) -> Run:
    run = Run("g0001")
    run.told["gate", "return_value"] = part(HASHES if made is None else made)
    return run


def recorded(root: Path) -> list[str]:
    return [key for key in open_store("registry", root).list("generations/") if "/trained-on-" in key]


def test_whose_data_trained_a_blocked_model_is_on_record(gated: Path, failure: type[Exception]) -> None:
    from flywheel_dag import tasks

    from flywheel_tasks.pipeline.trained_on import checkpoints_of

    with pytest.raises(failure, match="the gate does not pass generation g0001"):
        tasks.check_gate(run_after_gate(), "run-1")
    assert len(recorded(gated)) == 1
    last = open_registry("registry", gated).history()[-1]
    assert (last.kind, last.by) == ("declined", "airflow: run-1")
    shutil.rmtree(gated / "data/split")  # the tables are gone, the record is not
    (found,) = checkpoints_of(gated, ["u_1"])["u_1"]
    assert (found.generation, found.digest) == ("g0001", tree_digest(gated / "models/policy"))


def test_a_gate_of_another_checkout_or_run_is_not_asked_about(gated: Path, failure: type[Exception]) -> None:
    from flywheel_dag import tasks

    with pytest.raises(failure, match=r"gate/verdict\.json in .* is not what stage gate made in this run"):
        tasks.check_gate(run_after_gate(HASHES | {"gate/verdict.json": "v2"}), "run-1")
    write_json({"generation": "g0002"}, gated / "inputs/generation.json")
    with pytest.raises(failure, match="holds g0002, this run is of g0001"):
        tasks.check_gate(run_after_gate(), "run-1")
    write_json({"generation": "g0001"}, gated / "inputs/generation.json")
    with pytest.raises(failure, match="stage launch has not run in this run"):
        tasks.start_ab_test(run_after_gate(), "run-1")
    assert recorded(gated) == []


def test_a_lock_file_that_a_kill_cut_short_says_which_stage_to_clear(
    gated: Path, failure: type[Exception]
) -> None:
    from flywheel_dag import tasks

    (gated / "dvc.lock").write_text("stages:\n  gate:\n    outs:\n    - {")
    with pytest.raises(failure, match=r"is not what stage gate made in this run.*Clear the stage"):
        tasks.check_gate(run_after_gate(), "run-1")
    assert (gated / "dvc.lock.broken").exists()


@pytest.fixture
def stage_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What run_stage asks of the library, in a workspace with the project's dvc.yaml."""
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    lock = {"stages": {"validate": part({"data/validated": "v"}), "assemble": part({})}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    monkeypatch.setenv("FLYWHEEL_ROOT", str(tmp_path))
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(generation, "hold", lambda root, name, seed: calls.append(("hold", name, seed)))
    monkeypatch.setattr(runner, "run", lambda root, stage, **how: calls.append(("run", stage, how)))
    return calls


def test_a_run_that_is_cleared_keeps_its_generation(gated: Path) -> None:
    """A cleared task has lost what it told, and the registry knows the generation that it chose by now."""
    from flywheel_dag import tasks

    runs = ["scheduled__2026-11-02T03:00:00+00:00", "manual__../other run", "é" * 250]
    registry = open_registry("registry", gated)

    def chosen(run_id: str, **params: Any) -> str:
        name = tasks.choose_generation(PARAMS | params, run_id)
        registry.put_generation(name, "inputs.json", b"{}")
        return name

    assert [chosen(run_id) for run_id in runs] == ["g0002", "g0003", "g0004"]
    assert [chosen(run_id) for run_id in runs] == ["g0002", "g0003", "g0004"]
    assert chosen(runs[0], generation="g0001") == "g0001"


def test_a_stage_is_run_on_its_generation_and_on_what_the_run_has_made(stage_calls: list[Any]) -> None:
    run = Run("g0002")
    run.told["ingest", "return_value"] = part({"data/ingested": "i"})
    assert run.stage("validate", seed=7) == part({"data/validated": "v"})
    how = {"force_once": None, "made": {"ingest": part({"data/ingested": "i"})}}
    assert stage_calls == [("hold", "g0002", 7), ("run", "validate", how)]
    run.stage("assemble")
    assert list(stage_calls[-1][2]["made"]) == ["ingest", "validate"], "what it does not read itself, too"
    run.stage("validate", force=["validate"])
    assert stage_calls[-1][2]["force_once"] == "run-1"


def test_the_labels_of_a_run_are_pinned_in_every_checkout_that_comes_after(
    stage_calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = tmp_path / "inputs/labels.json"
    delivered = {"annotator": "files", "files": [{"path": "a.jsonl", "digest": "d", "bytes": 1}]}
    nothing = {"annotator": "files", "files": []}  # as a checkout that was synced before people had labelled
    lock = {"stages": {name: {"outs": []} for name in load_graph(PROJECT / "dvc.yaml")}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    monkeypatch.setattr(generation, "refresh_labels", lambda root: delivered)
    run = Run("g0002")
    run.told |= {(name, "return_value"): part({}) for name in lock["stages"]}
    write_json(nothing, pin)
    run.stage("ingest")
    run.stage("label")
    run.stage("annotation_batch")
    assert read_json(pin) == nothing, "neither is after the labels"
    run.stage("train_pointwise_rm")
    assert read_json(pin) == delivered
    assert [call[1] for call in stage_calls if call[0] == "run"][-1] == "train_pointwise_rm"


def test_a_stage_whose_inputs_nobody_made_does_not_run(
    stage_calls: list[Any], failure: type[Exception]
) -> None:
    run = Run("g0002")
    with pytest.raises(failure, match="stage ingest has not run in this run"):
        run.stage("validate")
    run.told["ingest", "return_value"] = {"data/ingested": "i"}  # as an earlier release told it
    with pytest.raises(failure, match="stage ingest has not run in this run"):
        run.stage("validate")
    assert stage_calls == []


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (RegistryError("no generation g0002"), True),
        (runner.LostDataError("inputs/champion.dvc: neither here nor in its remote"), True),
        (BusyError("DVC is at work"), False),
        (runner.StageFailedError("failed to connect to s3"), False),
    ],
)
def test_a_worker_that_cannot_be_brought_there_fails_at_once_a_busy_one_later(
    stage_calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    error: Exception,
    for_good: bool,
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(generation, "hold", fails)
    run = Run("g0002")
    run.told["ingest", "return_value"] = part({"data/ingested": "i"})
    with pytest.raises(failure if for_good else type(error), match=str(error)) as raised:
        run.stage("validate")
    assert isinstance(raised.value, failure) == for_good
    assert not for_good or "this worker cannot work on g0002" in str(raised.value)
    assert stage_calls == []


@pytest.mark.parametrize(("result", "soon"), [("unknown", True), ("go_on", False)])
def test_a_look_that_told_nothing_is_repeated_within_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, soon: bool
) -> None:
    from flywheel_dag import tasks

    from flywheel_tasks.online import approval, guardrails

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    test = SimpleNamespace(checks=[SimpleNamespace(result=result)])
    state = SimpleNamespace(running=lambda name: test)
    monkeypatch.setattr(approval, "registry_of", lambda root: SimpleNamespace(state=lambda: state))
    monkeypatch.setattr(guardrails, "watch", lambda root, name, by: guardrails.Step(until=tomorrow))
    until = tasks.watch_ab(Run("g0001"), "run-1").until
    assert (until < datetime.now(UTC) + timedelta(hours=1, minutes=1)) == soon
    assert until == tomorrow or soon


@pytest.mark.slow
def test_a_stale_worker_elsewhere_works_on_the_runs_generation_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    """Two checkouts with a real DVC, one remote and one registry; the second one stayed at the generation before."""
    from flywheel_dag import tasks

    settings = OVERRIDES | {"registry.location": str(tmp_path / "registry")}
    first, second = make_small(build_workspace(tmp_path / "first", settings)), tmp_path / "second"
    monkeypatch.setenv("PYTHONPATH", str(first))

    def work_at(root: Path) -> None:
        monkeypatch.setenv("FLYWHEEL_ROOT", str(root))

    def opened(name: str) -> Run:
        run = Run(name)
        tasks.open_generation(run, PARAMS)
        return run

    work_at(first)
    before = opened("g0001")
    for stage in ("base_model", "train"):
        before.stage(stage)
    shutil.copytree(first, second, symlinks=True)
    run = opened("g0002")
    for stage in ("base_model", "train"):
        run.stage(stage)
    model = (first / "models/policy/model.safetensors").read_text()

    work_at(second)
    assert (current(second)["generation"], (second / "models/policy/model.safetensors").read_text()) != (
        "g0002",
        model,
    )
    run.stage("gate")
    verdict = read_json(second / "gate/verdict.json")
    assert (verdict["generation"], verdict["model_digest"]) == ("g0002", tree_digest(first / "models/policy"))
    assert current(second)["generation"] == "g0002"

    work_at(first)  # and back: what was made elsewhere is brought here, and asked about only then
    with pytest.raises(failure, match="is not what stage gate made in this run"):
        tasks.check_gate(run, "run-1")
    run.stage("gate")
    tasks.check_gate(run, "run-1")
    assert run.told["pushed", "request"]["model_digest"] == verdict["model_digest"]

    run.told["train", "return_value"] = part({"models/policy": "0" * 32 + ".dir"})
    with pytest.raises(failure, match="models/policy: DVC has the files neither here nor in its remote"):
        run.stage("gate")
