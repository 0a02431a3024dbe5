"""A model that answers otherwise than when it was saved is not used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from flywheel_tasks.rewards.encoding import reward_tokenizer
from flywheel_tasks.settings import Lora
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.probe import FILE, ProbeError, answers, load_model, probe_ids

LORA = Lora(rank=4, alpha=8, layers=2)
KINDS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}


@pytest.fixture(scope="module")
def merged(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Merged models whose adapters (and head) are not what they began as, by peft's task type."""
    return {
        task: merge(tiny_models / "base", tmp_path_factory.mktemp(task) / "model", task) for task in KINDS
    }


@pytest.fixture
def saved(merged: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a merged model, to damage."""
    return lambda task: shutil.copytree(merged[task], tmp_path / "model")


def merge(base: Path, out: Path, task: str) -> Path:
    options: dict[str, Any] = {"num_labels": 1} if task == "SEQ_CLS" else {}
    model = KINDS[task].from_pretrained(base, **options)
    tokenizer = reward_tokenizer(base) if options else AutoTokenizer.from_pretrained(base)
    model.config.pad_token_id = tokenizer.pad_token_id
    heads = ["score"] if options else None
    trained = get_peft_model(model, lora_config(LORA, model.config, task, heads))
    torch.manual_seed(1)
    for name, value in trained.named_parameters():
        if "lora_B" in name or "score.modules_to_save" in name:
            torch.nn.init.normal_(value, std=0.3)
    merge_to_full(trained, tokenizer, out, probe=[5, 9, 200, 31, 7])
    return out


def change(folder: Path, key: str, value: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {key: value.expand_as(weights[key]).clone()}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_saved_model_is_taken_in_any_precision(
    saved: Callable[[str], Path], task: str, dtype: torch.dtype
) -> None:
    folder = saved(task)
    loaded = load_model(KINDS[task], folder, dtype)
    plain = KINDS[task].from_pretrained(folder, dtype=dtype).eval()
    assert loaded.dtype == dtype
    ids = probe_ids(AutoTokenizer.from_pretrained(folder))
    assert answers(loaded, ids) == answers(plain, ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lost_score_head_is_found(saved: Callable[[str], Path], dtype: torch.dtype) -> None:
    folder = saved("SEQ_CLS")
    change(folder, "score.weight", torch.tensor(0.01))
    with pytest.raises(ProbeError, match="answers otherwise than when it was saved"):
        load_model(AutoModelForSequenceClassification, folder, dtype)


def test_a_head_that_is_not_in_the_file_is_found(saved: Callable[[str], Path]) -> None:
    folder = saved("SEQ_CLS")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProbeError, match=r"weights are missing: score\.weight"):
        load_model(AutoModelForSequenceClassification, folder, torch.float32)


def test_adapters_that_were_lost_are_found_even_where_bfloat16_would_hide_them(
    tiny_models: Path, saved: Callable[[str], Path]
) -> None:
    folder = saved("CAUSAL_LM")
    kept = json.loads((folder / FILE).read_text())
    for layer in (2, 3):
        for part in ("self_attn.q_proj", "mlp.down_proj", "mlp.up_proj"):
            key = f"model.layers.{layer}.{part}.weight"
            change(folder, key, load_file(tiny_models / "base/model.safetensors")[key])
    with pytest.raises(ProbeError, match="answers otherwise"):
        load_model(AutoModelForCausalLM, folder, torch.bfloat16)
    assert kept["input_ids"] == probe_ids(AutoTokenizer.from_pretrained(folder))


def test_a_model_of_others_has_no_probe(saved: Callable[[str], Path]) -> None:
    folder = saved("CAUSAL_LM")
    (folder / FILE).unlink()
    change(folder, "model.norm.weight", torch.tensor(3.0))
    assert load_model(AutoModelForCausalLM, folder, torch.float32) is not None
