from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flywheel_tasks.settings import Lora
from flywheel_tasks.training.lora import MergeError, lora_config, merge_to_full

LORA = Lora(rank=4, alpha=8, layers=2)
IDS = [5, 9, 200, 31, 7]


@pytest.fixture
def base(tiny_models: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_models / "base")


@pytest.fixture
def tokenizer(tiny_models: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_models / "base")


def trained(base: PreTrainedModel) -> PeftModel:
    model = get_peft_model(base, lora_config(LORA, base.config, "CAUSAL_LM"))
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    return model


def test_all_linear_projections_of_the_last_layers_are_adapted(base: PreTrainedModel) -> None:
    model = get_peft_model(base, lora_config(LORA, base.config, "CAUSAL_LM"))
    adapted = {
        name.split(".lora_A")[0].split("model.layers.")[1]
        for name, _ in model.named_parameters()
        if "lora_A" in name
    }
    projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    projections += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert adapted == {f"{layer}.{projection}" for layer in (2, 3) for projection in projections}


def test_more_layers_than_there_are_means_all(base: PreTrainedModel) -> None:
    model = get_peft_model(base, lora_config(Lora(rank=2, alpha=2, layers=99), 4, "CAUSAL_LM"))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 4 * 7


def test_backward_stops_below_the_first_adapted_layer(base: PreTrainedModel) -> None:
    model = trained(base)
    needs_gradient: dict[int, bool] = {}
    for index, layer in enumerate(base.model.layers):
        layer.register_forward_hook(
            lambda module, args, output, index=index: needs_gradient.update(
                {index: (output if torch.is_tensor(output) else output[0]).requires_grad}
            )
        )
    model(input_ids=torch.tensor([IDS]), labels=torch.tensor([IDS])).loss.backward()
    assert needs_gradient == {0: False, 1: False, 2: True, 3: True}
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0
        for value in model.parameters()
        if value.requires_grad
    )


def test_merged_model_gives_the_same_logits_when_loaded_again(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = trained(base)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    merge_to_full(model, tokenizer, tmp_path / "out", probe=IDS)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, before, atol=1e-4)
        base_again = AutoModelForCausalLM.from_pretrained(base.config._name_or_path)
        assert not torch.allclose(base_again(input_ids=ids).logits, before, atol=1e-2)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float32}  # noqa: SIM118
        assert not [key for key in weights.keys() if "lora" in key]  # noqa: SIM118
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_loss_on_the_way_to_disk_is_an_error(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(base).from_pretrained

    def lossy(*args: object, **kwargs: object) -> object:
        model, report = original(*args, **kwargs)
        model.model.layers[3].mlp.up_proj.weight.data.zero_()
        return model, report

    monkeypatch.setattr(type(base), "from_pretrained", lossy)
    with pytest.raises(MergeError, match="logits differ"):
        merge_to_full(trained(base), tokenizer, tmp_path / "out", probe=IDS)


def test_weights_that_are_not_finite_are_never_saved(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = trained(base)
    base.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(MergeError, match="not finite"):
        merge_to_full(model, tokenizer, tmp_path / "out", probe=IDS)
    assert not (tmp_path / "out").exists()
