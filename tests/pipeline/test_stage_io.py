"""Declared paths and settings only; outputs all or none; resume state bound to its inputs."""

import dataclasses

import pytest
import yaml

from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.pipeline.stage_io import StageIO, UndeclaredPathError
from flywheel_tasks.settings import SettingsError, load_settings


def test_only_what_dvc_yaml_declares(make_io, tmp_path):
    io = make_io("sft", tmp_path)
    assert io.settings.sft.epochs > 0
    with pytest.raises(SettingsError, match="stage sft reads the setting rl"):
        _ = io.settings.rl
    with pytest.raises(UndeclaredPathError, match="data/evaluation"):
        io.dep("data/evaluation")
    with pytest.raises(UndeclaredPathError, match="models/policy_dpo"):
        io.out("models/policy_dpo")
    with pytest.raises(FileNotFoundError, match="data/rejection"):
        io.dep("data/rejection")


def test_outputs_appear_together_or_not_at_all(make_io, tmp_path):
    io = make_io("label", tmp_path)
    io.out("data/annotation/labels.jsonl").write_text("{}\n")
    with pytest.raises(FileNotFoundError, match=r"quarantine\.jsonl, metrics/label\.json"):
        io.commit()
    assert not (tmp_path / "data/annotation/labels.jsonl").exists()
    io.out("metrics/label.json").write_text("{}")
    io.out("data/annotation/quarantine.jsonl").write_text("")
    io.commit()
    assert (tmp_path / "data/annotation/labels.jsonl").read_text() == "{}\n"
    assert not (tmp_path / ".flywheel/tmp/label").exists()


def test_what_a_killed_run_left_is_gone(make_io, tmp_path):
    first = make_io("label", tmp_path)
    first.out("data/annotation/labels.jsonl").write_text("half")
    second = make_io("label", tmp_path)
    assert not second.out("data/annotation/labels.jsonl").exists()


def test_resume_state_is_for_these_inputs_settings_and_code_only(make_io, tmp_path):
    def prepared(overrides=None):
        io = make_io("label", tmp_path, overrides)
        return io

    batch = tmp_path / "data/annotation/batch.jsonl"
    batch.parent.mkdir(parents=True)
    batch.write_text("one\n")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/labels.json").write_text("{}")
    folder = prepared().resume_dir()
    (folder / "checkpoint").write_text("state")
    assert prepared().resume_dir() == folder
    assert (folder / "checkpoint").exists()
    other_setting = prepared({"seed": 1}).resume_dir()
    assert other_setting != folder
    assert not folder.exists()
    batch.write_text("two\n")
    assert prepared({"seed": 1}).resume_dir() != other_setting
    assert prepared({"seed": 1, "rl.steps": 3}).resume_dir() == prepared({"seed": 1}).resume_dir()


@pytest.mark.parametrize("stage", ["annotation_batch", "rejection_sample"])
def test_how_patiently_a_remote_policy_is_asked_does_not_begin_a_draw_anew(make_io, tmp_path, stage):
    make_io(stage, tmp_path)

    def fingerprint(**changes):
        params = yaml.safe_load((tmp_path / "params.yaml").read_text())
        entry = {"name": "big", "endpoint": "http://x/v1", "model": "m", "concurrency": 8} | changes
        params[stage]["pool"] = ["champion", entry]
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        graph = load_graph(tmp_path / "dvc.yaml")[stage]
        without_files = dataclasses.replace(graph, deps=())
        return StageIO(without_files, tmp_path, load_settings(tmp_path / "params.yaml")).fingerprint()

    first = fingerprint()
    assert fingerprint(concurrency=2, retries=20, timeout_seconds=600.0) == first
    assert fingerprint(model="other") != first
