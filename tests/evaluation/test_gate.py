import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from flywheel_tasks.evaluation.gate import run
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.settings import load_settings
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import read_json
from flywheel_tasks.storage.documents import write_json as write_metrics
from tests.evaluation.handmade import metrics, replies


def finish(io: Any) -> dict[str, Any]:
    found = run(io)
    write_metrics(found, io.out("metrics/gate.json"))
    io.commit()
    return dict(found)


def test_a_pass_is_bound_to_the_model(gate_io: Callable[..., Any]) -> None:
    io = gate_io()
    found = finish(io)
    verdict = read_json(io.root / "gate/verdict.json")
    assert verdict["verdict"] == "pass"
    assert verdict["generation"] == "g0001"
    assert verdict["model_digest"] == tree_digest(io.root / "models/policy")
    assert {"metric", "outcome", "value", "low", "high", "block", "warn", "reason"} == set(
        verdict["reasons"][0]
    )
    assert found["passed"] == 1
    approval = (io.root / "gate/approval.md").read_text()
    assert approval.startswith("# PASS: generation g0001")
    assert file_digest(io.root / "gate/verdict.json") in approval
    assert verdict["model_digest"] in approval


def test_a_block_is_a_result_and_not_an_error(gate_io: Callable[..., Any]) -> None:
    io = gate_io(metrics(user=0.707, internal=0.437))
    found = finish(io)
    verdict = read_json(io.root / "gate/verdict.json")
    assert verdict["verdict"] == "block"
    assert found["passed"] == 0
    assert found["rules"]["failed"] == sum(reason["outcome"] == "block" for reason in verdict["reasons"]) > 0
    assert (io.root / "gate/approval.md").read_text().startswith("# BLOCKED")
    assert "BLOCKED" in (io.root / "gate/report.html").read_text()


def test_metrics_without_any_figure_block(gate_io: Callable[..., Any]) -> None:
    io = gate_io({"evaluate": {}})
    finish(io)
    assert read_json(io.root / "gate/verdict.json")["verdict"] == "block"
    assert "not measured" in (io.root / "gate/report.html").read_text()


def test_the_same_inputs_give_the_same_files(gate_io: Callable[..., Any]) -> None:
    first = gate_io()
    finish(first)
    before = tree_digest(first.root / "gate")
    second = gate_io()
    finish(second)
    assert tree_digest(second.root / "gate") == before


@pytest.mark.parametrize(
    "missing", ["inputs/generation.json", "metrics/evaluate.json", "models/policy/model.safetensors"]
)
def test_a_missing_input_writes_no_verdict(gate_io: Callable[..., Any], missing: str) -> None:
    io = gate_io()
    (io.root / missing).unlink()
    if missing.startswith("models"):
        (io.root / "models/policy").rmdir()
    with pytest.raises(FileNotFoundError):
        run(io)
    assert not (io.root / "gate/verdict.json").exists()


@pytest.mark.parametrize(
    ("pairs", "source"), [(4, "simulated"), (0, "simulated"), (0, "files"), (None, None)]
)
def test_what_is_simulated_is_told_by_the_data_whatever_the_settings_say_now(
    gate_io: Callable[..., Any], pairs: int | None, source: str | None
) -> None:
    found = metrics()
    found["annotate"] |= {} if pairs is None else {"pairs_simulated": pairs}
    io = gate_io(found)
    generation = read_json(io.root / "inputs/generation.json")
    write_metrics(
        generation | ({"logs_source": source} if source else {}), io.root / "inputs/generation.json"
    )
    finish(io)
    users, annotators = source == "simulated", bool(pairs)
    text = (io.root / "gate/approval.md").read_text()
    note = text.split("\n\n")[2]
    assert ("users" in note) == (users or source is None), note
    assert ("annotators" in note) == (annotators or pairs is None), note
    assert ("**Simulated.**" in note) == (users or annotators)
    assert ("is not recorded" in note) == (source is None)
    assert not io.stage.params, "no setting of today's is asked"


def test_training_curves_that_dvc_declares_are_drawn(gate_io: Callable[..., Any]) -> None:
    io = gate_io()
    (io.root / "plots").mkdir(exist_ok=True)
    (io.root / "plots/rl.csv").write_text("step,loss,reward\n1,2.5,0.1\n2,2.25,\n3,1.5,0.4\n")
    deps = (*(dep for dep in io.stage.deps if not dep.startswith("plots/")), "plots/rl.csv")
    declared = StageIO(
        dataclasses.replace(io.stage, deps=deps), io.root, load_settings(io.root / "params.yaml")
    )
    finish(declared)
    page = (io.root / "gate/report.html").read_text()
    assert "RL: loss" in page
    assert "RL: reward" in page


def test_no_two_replies_that_differ(gate_io: Callable[..., Any]) -> None:
    rows = [row | {"candidate_reply": row["champion_reply"]} for row in replies()]
    io = gate_io(rows=rows)
    finish(io)
    assert "No two replies differ" in (io.root / "gate/report.html").read_text()


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [("instruction_following", -0.3, -0.1), ("false_refusal", 0.02, 0.2), ("templated", 0.02, 0.2)],
)
def test_what_is_worse_than_the_champion_beyond_noise_warns(
    gate_io: Callable[..., Any], metric: str, low: float, high: float
) -> None:
    measured = metrics()
    measured["evaluate"]["change"][metric] |= {"low": low, "high": high}
    io = gate_io(measured)
    finish(io)
    reasons = read_json(io.root / "gate/verdict.json")["reasons"]
    warned = [reason for reason in reasons if reason["outcome"] == "warn"]
    end = "high" if high < 0 else "low"
    assert [reason["metric"] for reason in warned] == [f"evaluate.change.{metric}.{end}"]
    assert warned[0]["reason"].startswith("Change in")
