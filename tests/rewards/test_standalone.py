"""``flywheel rm`` on files, in the format of a generation and in hh-rlhf's."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.cli.app import app
from flywheel_tasks.cli.reward_model import _SHOWN
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.base_model import BaseModelError
from flywheel_tasks.rewards import standalone
from flywheel_tasks.rewards.encoding import RewardModelError
from flywheel_tasks.rewards.pairs import PairError
from flywheel_tasks.rewards.standalone import evaluate_model, hold_out, read_pair_rows
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import file_digest
from flywheel_tasks.storage.tables import write_rows
from tests.conftest import build_workspace
from tests.rewards.conftest import planted_rows, tiny_of_type

runner = CliRunner()
COMPUTE = Compute(precision="float32", threads=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    section = {"epochs": 3.0, "learning_rate": 0.01, "max_tokens": 128}
    changes = {f"pointwise_rm.{key}": value for key, value in section.items()}
    return build_workspace(tmp_path / "workspace", changes | {"compute.precision": "float32"})


def transcripts(path: Path, count: int) -> Path:
    rows = []
    for number in range(count):
        asked = f"\n\nHuman: question {number} about moons?\n\nAssistant:"
        rows.append({"chosen": f"{asked} yes gladly, moon {number}", "rejected": f"{asked} no {number}"})
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.write("not json\n")
    return path


@pytest.mark.slow
def test_train_then_eval_in_the_format_of_a_generation(
    workspace: Path, tiny_models: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_rows(planted_rows(48, "reward_train") + planted_rows(16, "reward_heldout"), PAIRS, pairs)
    out = tmp_path / "rm"
    args = ["--pairs", str(pairs), "--root", str(workspace)]
    done = runner.invoke(app, ["rm", "train", *args, "--out", str(out), "--base", str(tiny_models / "base")])
    assert done.exit_code == 0, done.output
    assert "Held-out users" in done.output
    measured = json.loads((out / "metrics.json").read_text())["heldout"]
    assert measured["accuracy"]["low"] > 0.5
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.parquet", "rm", "workspace"}

    again = runner.invoke(app, ["rm", "eval", *args, "--model", str(out), "--json"])
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert found["kind"] == "pointwise"
    assert found["pairs"] == 2 * measured["pairs"] + 2 * (48 - 16)
    refused = runner.invoke(app, ["rm", "train", *args, "--out", str(out)])
    assert isinstance(refused.exception, PairError)
    assert "exists" in str(refused.exception)


@pytest.mark.slow
def test_hh_rlhf_lines_are_read_and_a_kill_is_survived(
    workspace: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    out = tmp_path / "rm"
    command = ["rm", "train", "--pairs", str(pairs), "--out", str(out), "--base", str(tiny_models / "base")]
    command += ["--root", str(workspace), "--epochs", "1", "--heldout", "0.25"]
    with monkeypatch.context() as patch:
        patch.setattr(standalone, "write_json", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        runner.invoke(app, command)
    assert not out.exists()
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["train"]["pairs"], metrics["heldout"]["pairs"], metrics["skipped"]) == (9, 3, 1)


def test_another_base_replaces_the_backbone_that_a_killed_run_left(
    workspace: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    other = tmp_path / "other"
    shutil.copytree(tiny_models / "base", other)
    made: list[str] = []
    original = standalone.save_policy

    def counted(base: str, cache: Path, out: Path) -> None:
        made.append(base)
        original(base, cache, out)

    def dies(io: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(standalone, "save_policy", counted)
    monkeypatch.setitem(standalone._RUN, "pointwise", dies)
    config = json.loads((other / "config.json").read_text())
    for base, edit in (
        (tiny_models / "base", None),
        (other, None),
        (other, None),
        (other, {"rope_theta": 5e4}),
    ):
        if edit:
            (other / "config.json").write_text(json.dumps(config | edit))
        command = ["rm", "train", "--pairs", str(pairs), "--out", str(tmp_path / "rm"), "--base", str(base)]
        runner.invoke(app, [*command, "--root", str(workspace)])
    assert made == [str(tiny_models / "base"), str(other), str(other)]  # the third run found its own


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(PairError, match=r"pairs\.csv: neither"):
        read_pair_rows(tmp_path / "pairs.csv")
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(PairError, match=r"empty\.jsonl: no pair in it \(1 lines skipped\)"):
        read_pair_rows(tmp_path / "empty.jsonl")
    (tmp_path / "garbage.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(PairError, match=r"garbage\.parquet: not a Parquet file"):
        read_pair_rows(tmp_path / "garbage.parquet")
    with pytest.raises(RewardModelError, match="no reward model"):
        evaluate_model(tmp_path, tmp_path / "empty.jsonl", COMPUTE)
    with pytest.raises(PairError, match="at least two users"):
        hold_out([{"user_id": "a", "purpose": "policy"}], 0.5, 1)


def test_users_are_held_out_whole() -> None:
    rows = [{"user_id": f"u{n % 10}", "purpose": "reward_train"} for n in range(50)]
    found = hold_out(rows, 0.3, 7)
    by_user = {(row["user_id"], row["purpose"]) for row in found}
    assert len(by_user) == 10
    assert sum(purpose == "reward_heldout" for _, purpose in by_user) == 3
    assert hold_out(rows, 0.3, 7) == found


def test_a_folder_left_by_a_killed_run_is_no_model(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent, tmp_path / "rm", ignore=shutil.ignore_patterns("*"))
    with pytest.raises(RewardModelError, match=r"scorer\.json is missing"):
        evaluate_model(tmp_path / "rm", tmp_path / "x.jsonl", COMPUTE)
    (tmp_path / "rm/scorer.json").write_text("[]")
    with pytest.raises(RewardModelError, match=r"scorer\.json: not the scorer\.json of a reward model"):
        evaluate_model(tmp_path / "rm", tmp_path / "x.jsonl", COMPUTE)


def test_what_cannot_be_begun_from_is_one_error_and_leaves_no_texts(
    workspace: Path, tiny_models: Path, tmp_path: Path
) -> None:
    mute = shutil.copytree(tiny_models / "base", tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    deaf = shutil.copytree(tiny_models / "base", tmp_path / "deaf")
    (deaf / "chat_template.jinja").write_text("{{ raise_exception('not for chats') }}")
    good = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    mamba = tiny_of_type("mamba", tiny_models / "base", tmp_path / "mamba", state_size=4)
    table = pa.Table.from_pylist(read_pair_rows(good)[0], schema=PAIRS)
    at = table.schema.get_field_index("reviews")
    pq.write_table(table.set_column(at, "reviews", pa.array(["one"] * 12)), tmp_path / "odd.parquet")
    kept = {path.name for path in tmp_path.iterdir()}
    for base, pairs, kind, message in (
        ("absent", good, BaseModelError, "base model absent: neither built in"),
        (str(mute), good, BaseModelError, "no chat template"),
        (str(deaf), good, BaseModelError, "its chat template refuses a chat: not for chats"),
        (str(mamba), good, BaseModelError, "mamba: cannot be a reward model"),
        (str(mute), tmp_path / "odd.parquet", PairError, r"odd\.parquet: a value has not its column's type"),
    ):
        command = ["rm", "train", "--pairs", str(pairs), "--out", str(tmp_path / "rm"), "--base", base]
        refused = runner.invoke(app, [*command, "--root", str(workspace)])
        assert isinstance(refused.exception, kind)
        assert re.search(message, str(refused.exception))
        assert "\n" not in str(refused.exception)
        assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("checkpoint", [False, True])
def test_any_failure_leaves_no_texts_unless_there_is_something_to_go_on_from(
    workspace: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    kept = {path.name for path in tmp_path.iterdir()}

    def fails(io: StageIO) -> None:
        if checkpoint:
            (io.resume_dir() / "checkpoint-3").mkdir()
        raise MemoryError

    monkeypatch.setitem(standalone._RUN, "pointwise", fails)
    command = ["rm", "train", "--pairs", str(pairs), "--out", str(tmp_path / "rm"), "--root", str(workspace)]
    failed = runner.invoke(app, [*command, "--base", str(tiny_models / "base")])
    assert isinstance(failed.exception, MemoryError)
    assert {path.name for path in tmp_path.iterdir()} - kept == ({".rm.work"} if checkpoint else set())


def test_two_runs_do_not_share_a_folder_and_none_overwrites_what_is_there(
    workspace: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    out = tmp_path / "rm"
    command = ["rm", "train", "--pairs", str(pairs), "--out", str(out), "--root", str(workspace)]
    command += ["--base", str(tiny_models / "base")]
    seen: list[str] = []

    def trains(io: StageIO) -> dict[str, Any]:
        (io.root / "mark").touch()
        beside = runner.invoke(app, command)
        assert isinstance(beside.exception, PairError)
        seen.append(str(beside.exception))
        assert (io.root / "mark").exists()  # the other run left its folder alone
        io.out("models/pointwise_rm").mkdir(parents=True)
        io.out("plots/pointwise_rm.csv").touch()
        out.mkdir()  # by somebody else
        (out / "theirs").touch()
        return {"pairs": {"own": 9}, "heldout": {"pairs": 3}}

    monkeypatch.setitem(standalone._RUN, "pointwise", trains)
    refused = runner.invoke(app, command)
    assert isinstance(refused.exception, PairError)
    assert seen == [f"{out}: another flywheel rm train is at work on it"]
    assert str(refused.exception) == f"{out}: exists; remove it or name another folder"
    assert (out / "theirs").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"pairs.jsonl.gz", "rm", ".rm.work", "workspace"}  # what was trained is not lost


@pytest.mark.parametrize(("option", "used"), [([], 36), (["--max-pairs", "5"], 5)])
def test_a_pairwise_model_takes_all_pairs_unless_told(
    workspace: Path,
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: list[str],
    used: int,
) -> None:
    """Whatever the settings of a generation are: there a pairwise model is one part of many."""

    def stage(io: StageIO) -> dict[str, Any]:
        most = io.settings.pairwise_rm.max_pairs
        io.out("models/pairwise_rm").mkdir(parents=True, exist_ok=True)
        io.out("plots/pairwise_rm.csv").parent.mkdir(parents=True, exist_ok=True)
        io.out("plots/pairwise_rm.csv").touch()
        held_out: dict[str, Any] = {key: {"value": None, "n": 0} for key in _SHOWN}
        held_out["pairs"] = min(4, most)
        train = {"pairs": min(36, most), "steps": 1, "loss_first": 1.0, "loss_last": 1.0}
        return {"train": train, "pairs": {"own": min(36, most)}, "heldout": held_out}

    monkeypatch.setitem(standalone._RUN, "pairwise", stage)
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 40)
    out = tmp_path / "rm"
    command = ["rm", "train", "--kind", "pairwise", "--pairs", str(pairs), "--out", str(out)]
    done = runner.invoke(
        app, [*command, "--base", str(tiny_models / "base"), "--root", str(workspace), *option]
    )
    assert done.exit_code == 0, done.output
    assert f"{used} pairs, 1 steps" in done.output
    assert ("31 pairs were left out: --max-pairs 5" in done.output) == bool(option)
    assert json.loads((out / "metrics.json").read_text())["left_out"] == 36 - used


def test_a_launcher_in_the_settings_does_not_keep_a_model_from_being_trained_alone(
    workspace: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is named from the workspace, and the working folder of ``flywheel rm`` is another."""
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["compute"]["launcher"] = "launchers/ddp.yaml"
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    folders: list[Path] = []

    def dies(io: StageIO) -> None:
        folders.append(io.resume_dir())
        raise KeyboardInterrupt

    monkeypatch.setitem(standalone._RUN, "pointwise", dies)
    command = ["rm", "train", "--pairs", str(pairs), "--out", str(tmp_path / "rm"), "--root", str(workspace)]
    runner.invoke(app, [*command, "--base", str(tiny_models / "base")])
    assert len(folders) == 1


def test_a_killed_run_does_not_go_on_with_other_code(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = load_graph(workspace / "dvc.yaml")["train_pointwise_rm"]
    work = tmp_path / "work"
    work.mkdir()

    def code() -> str:
        alone = standalone._alone(stage, work)
        assert not [dep for dep in alone.deps if dep.startswith("flywheel_tasks/")]
        assert "code.json" in alone.deps
        return file_digest(work / "code.json")

    before = code()
    assert code() == before
    digests = json.loads((work / "code.json").read_text())
    assert "flywheel_tasks/rewards/trainer.py" in digests
    assert None not in digests.values()
    original = standalone.tree_digest
    changed = "flywheel_tasks/rewards/trainer.py"
    monkeypatch.setattr(
        standalone, "tree_digest", lambda path: "0" if str(path).endswith(changed) else original(path)
    )
    assert code() != before


def test_a_higher_token_limit_is_the_prompts_too(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = transcripts(tmp_path / "pairs.jsonl.gz", 12)
    asked: list[tuple[int, int]] = []

    def taken(*args: Any, params: Any, **kwargs: Any) -> None:
        asked.append((params["prompt"]["max_tokens"], params["pointwise_rm"]["max_tokens"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(standalone, "train_model", taken)
    command = ["rm", "train", "--pairs", str(pairs), "--out", str(tmp_path / "rm"), "--root", str(workspace)]
    for more in ([], ["--max-tokens", "512"], ["--max-tokens", "64"]):
        runner.invoke(app, [*command, *more])
    assert asked == [(160, 128), (512, 512), (160, 64)]
