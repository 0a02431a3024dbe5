"""Trainings in several processes: which configuration, which command, and a real run of two processes on a CPU."""

import json
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
from transformers import TrainingArguments

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.launcher import PATIENCE, LaunchError, command, configuration, processes
from flywheel_tasks.pipeline.stage import run_stage
from flywheel_tasks.settings import Compute
from flywheel_tasks.training.run import TrainingError, trainer_arguments
from tests.conftest import PROJECT
from tests.ports import free_port

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


WAITS = """
import sys, time
from pathlib import Path
from flywheel_tasks.pipeline.launcher import main_first, process, wait_for_all

file = Path(sys.argv[1])
with main_first():
    if process() == 0:
        time.sleep(2)
        file.write_text("main")
    found = file.read_text()
wait_for_all()
print(found)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="two CPU processes are wanted")
def test_others_wait_for_the_main_process_before_there_is_a_trainer(tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **shared, "FLYWHEEL_LAUNCHED_STAGE": "rl", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS, str(tmp_path / "made")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    ended = [(*one.communicate(timeout=120), one.returncode) for one in running]
    assert [(out, code) for out, _, code in ended] == [("main\n", 0)] * 2, ended


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


def test_deepspeed_keeps_float32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate and transformers fill in what DeepSpeed is given; it need not be installed for that.

    Weights that it casts to bfloat16 are not what a later process loads, and the stage would fail after its training.
    """
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class Filled(HfDeepSpeedConfig):
        fill_match = HfTrainerDeepSpeedConfig.__dict__["fill_match"]
        fill_only = HfTrainerDeepSpeedConfig.__dict__["fill_only"]
        process = HfTrainerDeepSpeedConfig.__dict__["trainer_config_process"]

    launched = load_config_from_file(str(PROJECT / "launchers/deepspeed.yaml"))
    fields = [*launched.deepspeed_config, *(["mixed_precision"] if launched.mixed_precision else [])]
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", ",".join(fields))  # refuses some beside a file
    file = PROJECT / launched.deepspeed_config["deepspeed_config_file"]
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")  # what arguments with bf16 ask for
    filled: Any = Filled(plugin.deepspeed_config)
    filled.mismatches = []
    filled.process(TrainingArguments(output_dir="x", use_cpu=True, bf16=True, per_device_train_batch_size=3))
    assert filled.mismatches == []
    assert not filled.is_true("bf16.enabled")
    assert filled.get_value("torch_autocast") == {"enabled": True, "dtype": "bfloat16"}
    assert filled.get_value("zero_optimization.stage") == 2
    assert (filled.get_value("train_micro_batch_size_per_gpu"), filled.get_value("gradient_clipping")) == (
        3,
        1.0,
    )


def test_a_training_is_not_resumed_by_another_launcher_file(make_io: Any, tmp_path: Path) -> None:
    for dep in ("models/policy_sft", "data/preferences"):
        (tmp_path / dep).mkdir(parents=True)

    def fingerprint(stage: str = "dpo") -> str:
        return make_io(stage, tmp_path, {"compute.launcher": "mine.yaml"}).fingerprint()

    with pytest.raises(LaunchError, match=r"mine\.yaml is no file"):
        fingerprint()
    found = []
    for processes_, stage in ((2, 2), (4, 2), (4, 1)):
        named = {"num_processes": processes_, "deepspeed_config": {"deepspeed_config_file": "mine.json"}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(named))
        (tmp_path / "mine.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        found.append(fingerprint())
        assert fingerprint() == found[-1]
    assert len(set(found)) == 3


class Seen(Exception):
    """Ends a stage where its work would begin."""


@pytest.mark.parametrize(
    ("allowed", "seen"), [(None, "0"), ("2,3", "2"), ("", ""), ("GPU-1a,GPU-2b", "GPU-1a")]
)
def test_a_training_in_one_process_sees_one_gpu(
    allowed: str | None, seen: str, policy_io: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it sees several, transformers spreads the model over them, and TRL refuses that."""
    name = "CUDA_VISIBLE_DEVICES"
    monkeypatch.delenv(name, raising=False)
    if allowed is not None:
        monkeypatch.setenv(name, allowed)

    def work(io: Any) -> None:
        raise Seen(os.environ.get(name))

    monkeypatch.setattr("flywheel_tasks.pipeline.stage._work", work)
    root = policy_io("dpo").root
    with pytest.raises(Seen) as found:
        run_stage("dpo", root)
    assert found.value.args == (seen,)
    assert os.environ.get(name) == allowed  # a launcher that is started later hands out all of them
    with pytest.raises(Seen) as found:
        run_stage("rejection_sample", root)
    assert found.value.args == (allowed,)


def test_each_process_has_its_gpu_before_any_model_is_loaded(
    policy_io: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate gives a process its GPU when its state is made; a model moved to "cuda" before is on the first one."""
    made: list[Any] = []

    class State:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def wait_for_everyone(self) -> None:
            pass

    def work(io: Any) -> None:
        assert made == [{"cpu": not torch.cuda.is_available(), "timeout": PATIENCE}]
        raise Seen

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr("flywheel_tasks.pipeline.stage._work", work)
    root = policy_io("rl").root
    for variable, value in (("FLYWHEEL_LAUNCHED_STAGE", "rl"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(variable, value)
    with pytest.raises(Seen):
        run_stage("rl", root)


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
    """Real processes on a CPU (gloo), by the shipped ddp.yaml: the same rows a step, the same weights.

    The pairs leave the last step open: one pair of four.
    """
    settings = {
        "dpo.learning_rate": 0.01,
        "dpo.pairs": {"preferences": 5},
        "dpo.batch_size": 4,
        "dpo.epochs": 1.0,
        "training.tracker": "none",
    }
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
