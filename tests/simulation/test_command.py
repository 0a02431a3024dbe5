import gzip

import orjson
import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from flywheel_tasks.cli.simulate import _ab_users, app
from flywheel_tasks.storage.documents import read_jsonl, write_json, write_jsonl
from flywheel_tasks.traffic.events import parse_line
from tests.simulation.test_annotators import make_tasks


@pytest.fixture
def workspace(tmp_path, make_workspace):
    return make_workspace(
        tmp_path / "w",
        {
            "simulation.users": 4,
            "simulation.turns": 1,
            "simulation.days": 2,
            "sampling.max_new_tokens": 4,
            "rl.length_limit": 4,
            "compute.threads": 1,
        },
    )


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_traffic_then_an_ab_test_with_a_real_tiny_model(workspace, tiny_models, tmp_path):
    model, logs = tiny_models / "base", workspace / "data" / "logs"
    run("traffic", "--model", model, "--out", logs, "--root", workspace)
    dates = sorted(path.name for path in logs.glob("date=*"))
    assert dates[0] == "date=2026-11-02"
    lines = [
        line for path in logs.glob("date=*/*.gz") for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    events = [parse_line(line) for line in lines]
    models = {
        event.row["model"] for event in events if event.type == "message" and event.row["role"] == "assistant"
    }
    assert len(models) == 1
    assert models.pop().startswith("base@")

    plan = {
        "experiment": "g0001",
        "generation": "g0001",
        "salt": "s",
        "rule": {"include_sources": ["user"]},
        "arms": [{"name": "control", "share": 0.5}, {"name": "candidate", "share": 0.5}],
    }
    write_json(plan, tmp_path / "plan.json")
    command = ["ab", "--plan", tmp_path / "plan.json", "--control", model, "--candidate", model]
    command += ["--out", logs, "--root", workspace, "--users", 6]
    run(*command)
    new = {path.name for path in logs.glob("date=*")} - set(dates)
    assert min(new) > max(dates)
    written = {path: path.read_bytes() for path in logs.glob("date=*/ab-g0001.jsonl.gz")}
    run(*command)  # a run that was cut short starts on its own days again
    assert {path: path.read_bytes() for path in logs.glob("date=*/ab-g0001.jsonl.gz")} == written
    rows = [orjson.loads(line) for data in written.values() for line in gzip.decompress(data).splitlines()]
    assert {row["arm"] for row in rows if row["type"] == "exposure"} == {"control", "candidate"}


def test_label(tmp_path):
    tasks = make_tasks(5)
    write_jsonl(tasks, tmp_path / "batch.jsonl")
    run("label", "--batch", tmp_path / "batch.jsonl", "--out", tmp_path / "labels.jsonl", "--seed", 3)
    assert [row["task_id"] for row in read_jsonl(tmp_path / "labels.jsonl")] == [
        task["task_id"] for task in tasks
    ]


@pytest.mark.parametrize("needed", [1, 20, 130, 2000])
def test_hardly_ever_has_an_arm_too_few_users(needed):
    plan = {"arms": [{"share": 0.1}, {"share": 0.1}], "rule": {"min_users_per_arm": needed}}
    users = _ab_users(plan, 0.5, 10)
    assert binom.cdf(needed - 1, users, 0.1 * 0.5) < 0.005
