"""Faster steps on a CPU: the same loss and gradients but for rounding, and the model as it was afterwards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.settings import load_settings
from flywheel_tasks.training import cpu_steps
from flywheel_tasks.training.cpu_steps import fast_steps, fused_attention
from flywheel_tasks.training.prepacked import prepacked
from tests.conftest import PROJECT

IDS = torch.arange(40).view(4, 10)
SEEN = torch.ones_like(IDS)
SEEN[0, :4] = 0
LABELS = IDS.masked_fill(SEEN == 0, -100)
LABELS[0, 4] = -100  # padding predicts nothing


def adapted(**options):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(**lora))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)
    return model.train()


def learned(model, dtype=torch.bfloat16):
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(input_ids=IDS, attention_mask=SEEN, labels=LABELS).loss
    loss.backward()
    return loss.item(), {
        name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad
    }


def away(found, exact):
    """Distance of gradients from the exact ones, as a share of these."""
    distance = sum(((found[name] - exact[name]) ** 2).sum() for name in exact)
    return float((distance / sum((value**2).sum() for value in exact.values())).sqrt())


def state_of(model):
    return {name: (value.dtype, id(value)) for name, value in model.named_parameters()}


def test_loss_and_gradients_differ_by_rounding_alone():
    model = adapted()
    exact_loss, exact = learned(model, torch.float32)
    plain_loss, plain = learned(model)
    with fast_steps(model, bfloat16=True, rows=4, longest=10):
        loss, fast = learned(model)
    assert loss == pytest.approx(exact_loss, rel=0.01)
    assert away(fast, exact) < max(0.03, 1.5 * away(plain, exact))
    assert abs(loss - plain_loss) < 0.02


def test_all_three_parts_are_at_work_and_the_model_is_as_it_was_afterwards():
    model = adapted()
    before, text = state_of(model), model.get_base_model().config
    answers = model.eval()(input_ids=IDS).logits
    with fast_steps(model.train(), bfloat16=True, rows=4, longest=10):
        formats = {name: value.dtype for name, value in model.named_parameters()}
        adapter = model.get_base_model().model.layers[0].mlp.up_proj
        assert formats["base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"] == torch.bfloat16
        assert formats["base_model.model.model.embed_tokens.weight"] == torch.float32
        assert {dtype for name, dtype in formats.items() if "lora" in name} == {torch.float32}
        assert text._attn_implementation == "eager"
        assert "forward" in vars(adapter)
    assert state_of(model) == before
    assert text._attn_implementation == "sdpa"
    assert "forward" not in vars(adapter)
    assert torch.equal(model.eval()(input_ids=IDS).logits, answers)


def test_it_is_as_it_was_after_an_error():
    model = adapted()
    before = state_of(model)
    with pytest.raises(ValueError, match="stop"), fast_steps(model, bfloat16=True, rows=4, longest=10):
        raise ValueError("stop")
    assert state_of(model) == before


def test_long_rows_keep_fused_attention():
    model = adapted()
    text = model.get_base_model().config
    for longest in (10_000, None):
        with fast_steps(model, bfloat16=True, rows=8, longest=longest):
            assert text._attn_implementation == "sdpa"


@pytest.mark.parametrize("what", ["float32", "in full", "several processes"])
def test_nothing_changes_where_it_is_not_for(what, monkeypatch):
    model = adapted()
    if what == "in full":
        model = model.get_base_model()
    if what == "several processes":
        monkeypatch.setattr(cpu_steps, "processes", lambda: 2)
    before, text = state_of(model), getattr(model, "get_base_model", lambda: model)().config
    with fast_steps(model, bfloat16=what != "float32", rows=4, longest=10):
        assert state_of(model) == before
        assert text._attn_implementation == "sdpa"
        assert not [layer for layer in model.modules() if "forward" in vars(layer)]


def test_adapters_of_another_kind_are_left_to_peft():
    for options in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        model = adapted(**options)
        with fast_steps(model, bfloat16=True, rows=4, longest=10):
            assert not [layer for layer in model.modules() if "forward" in vars(layer)], options
            learned(model)


def test_what_is_drawn_within_is_what_the_adapters_say():
    model = adapted()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(input_ids=IDS).logits
        with fast_steps(model, bfloat16=True, rows=4, longest=None), prepacked(model, 4):
            drawn = model(input_ids=IDS).logits
            with model.disable_adapter():
                without = model(input_ids=IDS).logits
    torch.testing.assert_close(drawn, plain, atol=0.05, rtol=0.05)
    assert (without - drawn).abs().max() > 0.01


def test_replies_are_drawn_with_fused_attention():
    model = adapted()
    text = model.get_base_model().config
    with fast_steps(model, bfloat16=True, rows=4, longest=10):
        with fused_attention(model):
            assert text._attn_implementation == "sdpa"
        assert text._attn_implementation == "eager"
    assert text._attn_implementation == "sdpa"
    text._attn_implementation = "eager"  # as its owner wants it
    with fused_attention(model):
        assert text._attn_implementation == "eager"


def test_a_sampler_of_a_model_in_training_draws_with_fused_attention(tiny_models, monkeypatch):
    seen = []
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_models / "base"),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    text, tokenizer = model.get_base_model().config, AutoTokenizer.from_pretrained(tiny_models / "base")
    model.register_forward_pre_hook(lambda *_: seen.append(text._attn_implementation))
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as accelerate wraps it
    sampling = load_settings(PROJECT / "params.yaml").sampling.model_copy(update={"max_new_tokens": 3})
    with fast_steps(model, bfloat16=True, rows=4, longest=10):
        sampler = Sampler.from_model(model, tokenizer, sampling=sampling, max_prompt_tokens=96)
        sampler.sample_ids([[5, 9, 200, 31]], 2, 7)
        assert text._attn_implementation == "eager"
    assert set(seen) == {"sdpa"}
