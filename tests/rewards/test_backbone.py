"""Types of models that transformers has no sequence classifier for, and those that cannot be a reward model at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from flywheel_tasks.policy.base_model import BaseModelError, save_policy
from flywheel_tasks.rewards.backbone import BackboneError, check_backbone, classifier_kind, load_backbone
from tests.rewards.conftest import OTHER_TYPES, tiny_of_type


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_type_without_a_classifier_gets_the_generic_one(
    kind: str, tiny_models: Path, tmp_path: Path
) -> None:
    folder = tiny_of_type(kind, tiny_models / "base", tmp_path / kind)
    assert CONFIG_MAPPING[kind] not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    check_backbone(folder)
    model = load_backbone(folder, 2)
    assert model.get_parameter("score.weight").shape == (1, 32)
    policy = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    own = {key: value for key, value in model.state_dict().items() if key != "score.weight"}
    assert own
    assert all(torch.equal(value, policy[key]) for key, value in own.items())

    model.save_pretrained(tmp_path / "saved")
    again = classifier_kind(tmp_path / "saved").from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        # Its convolutions see the reply before in a packed row.
        ("lfm2", {"layer_types": ["conv", "full_attention"], "initializer_range": 0.5}, "packed replies"),
        ("mamba", {"state_size": 4}, "RuntimeError"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "ValueError"),
        ("trocr", {"d_model": 32, "decoder_layers": 1, "decoder_ffn_dim": 32}, "no decoder for TrOCRConfig"),
    ],
)
def test_what_cannot_be_a_reward_model_is_refused_when_the_base_is_saved(
    kind: str, changes: dict[str, Any], why: str, tiny_models: Path, tmp_path: Path
) -> None:
    folder = tiny_of_type(kind, tiny_models / "base", tmp_path / kind, **changes)
    with pytest.raises(BackboneError, match=why):
        check_backbone(folder)
    with pytest.raises(BaseModelError, match=rf"base model .*{kind}: cannot be a reward model: .*{why}"):
        save_policy(str(folder), tmp_path, tmp_path / "base")
