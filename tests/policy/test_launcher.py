"""Trainings in several processes: which configuration, which command, and a real run of two processes on a CPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.launcher import LaunchError, command, configuration, processes
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.settings import Compute
from flywheel_tasks.training.run import TrainingError, trainer_arguments
from tests.conftest import PROJECT

SHIPPED = sorted((PROJECT / "launchers").glob("*.yaml"))


def compute(launcher: Any) -> Compute:
    return Compute(precision="float32", threads=1, launcher=launcher)


def test_one_configuration_for_all_trainings_or_one_by_stage(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("{}")
    assert configuration(compute(None), "sft", tmp_path) is None
    assert configuration(compute("a.yaml"), "sft", tmp_path) == tmp_path / "a.yaml"
    by_stage = compute({"sft": "a.yaml", "rl": "b.yaml"})
    found = [configuration(by_stage, stage, tmp_path) for stage in ("sft", "rl", "dpo")]
    assert found == [tmp_path / "a.yaml", tmp_path / "b.yaml", None]
    with pytest.raises(LaunchError, match=r"compute\.launcher: .*c\.yaml is no file \(for stage rl\)"):
        configuration(compute("c.yaml"), "rl", tmp_path)


def test_trainings_alone_are_distributed() -> None:
    graph = load_graph(PROJECT / "dvc.yaml")
    assert {name for name, stage in graph.items() if stage.distributed} == {
        "train_pointwise_rm",
        "train_pairwise_rm",
        "sft",
        "dpo",
        "rl",
    }


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
def test_accelerate_takes_the_command_and_each_shipped_configuration(config: Path) -> None:
    words = command("sft", PROJECT, config)
    assert words[1:3] == ["-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args(words[3:])
    assert (parsed.config_file, parsed.module) == (str(config), True)
    assert parsed.training_script == "flywheel_tasks.cli"
    assert parsed.training_script_args == ["stage", "sft", "--root", str(PROJECT)]
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(config))  # refuses unknown keys
    assert loaded.num_processes == yaml.safe_load(config.read_text())["num_processes"] > 1


def test_a_steps_rows_are_shared_or_the_run_is_refused(
    make_io: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    for dep in ("models/policy_sft", "data/preferences"):
        (tmp_path / dep).mkdir(parents=True)
    io = make_io("dpo", tmp_path)
    assert processes() == 1
    monkeypatch.setenv("FLYWHEEL_LAUNCHED_STAGE", "dpo")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert trainer_arguments(io, 0.1, 8, 1)["per_device_train_batch_size"] == 2
    with pytest.raises(TrainingError, match="6 rows cannot be shared by 4 processes"):
        trainer_arguments(io, 0.1, 6, 1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the two would train on CPUs, the one on the GPU")
def test_two_processes_train_what_one_does(policy_io: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Real processes on a CPU (gloo), by the shipped ddp.yaml: the same rows a step, the same weights."""
    settings = {"dpo.learning_rate": 0.01, "training.tracker": "none"}
    one = policy_io("dpo", settings, root=tmp_path / "one").root
    run_stage("dpo", one)
    two = policy_io("dpo", settings | {"compute.launcher": "ddp.yaml"}, root=tmp_path / "two").root
    shipped = yaml.safe_load((PROJECT / "launchers/ddp.yaml").read_text())
    (two / "ddp.yaml").write_text(yaml.safe_dump(shipped | {"num_processes": 2}))
    done = subprocess.run(
        [sys.executable, "-m", "flywheel_tasks.cli", "stage", "dpo", "--root", str(two)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((two / ".flywheel/tmp").iterdir())
    weights = [load_file(root / "models/policy_dpo/model.safetensors") for root in (one, two)]
    before = load_file(one / "models/policy_sft/model.safetensors")
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in weights[0].items())
