"""Preference pairs with a planted rule: the better reply has the word "sure" in it."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.pipeline import earlier_pairs, reward_model_pin
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import write_rows

WORDS = ("moon", "river", "garden", "lamp", "cloud", "stone", "paper", "window", "kettle", "violin", "meadow")


def planted_rows(prompts: int, purpose: str, seed: int = 0) -> list[dict[str, Any]]:
    """Two pairs a prompt, four prompts a user; only the planted word tells the better reply."""
    random_ = random.Random(f"{purpose}{seed}")
    rows = []
    for prompt in range(prompts):
        history = [{"role": "user", "content": " ".join(random_.choices(WORDS, k=random_.randint(3, 9)))}]
        for pair in range(2):
            replies = []
            for planted in (True, False):
                words = random_.choices(WORDS, k=random_.randint(3, 8))
                if planted:
                    words[random_.randrange(len(words))] = "sure"
                replies.append(" ".join(words))
            rows.append(
                {
                    "pair_id": f"{purpose}-{prompt}-{pair}",
                    "prompt_id": f"{purpose}-{prompt}",
                    "user_id": f"{purpose}-user-{prompt // 4}",
                    "source": "user" if prompt % 2 else "internal",
                    "purpose": purpose,
                    "card_id": "c1",
                    "card_name": "Mira",
                    "traits": ["calm"],
                    "instructions": [],
                    "history": history,
                    "chosen": replies[0],
                    "rejected": replies[1],
                    "kind": "rewrite" if pair else "ranking",
                    "agreement": 1.0,
                    "reviews": 3,
                    "consensus": not pair,
                    "one_review": None if pair else float(prompt % 6 > 0),  # one in six is another opinion
                }
            )
    return rows


def write_pairs(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a pairs table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(rows, PAIRS, path)


_ANY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
# Types without a sequence classifier in transformers, and what keeps one tiny.
OTHER_TYPES: dict[str, dict[str, Any]] = {
    "granite": _ANY,
    "cohere2": _ANY,
    "ernie4_5": _ANY,
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 256},
    "gemma3n_text": _ANY  # its family's own config has pictures and sound, too
    | {
        "intermediate_size": [32, 32],
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
}


def tiny_of_type(kind: str, base: Path, out: Path, **changes: Any) -> Path:
    """A tiny random model of a type of transformers', with the tokenizer of the tiny policy.

    Args:
        kind: its ``model_type``.
        base: the tiny policy.
        out: folder to write.
        changes: of its config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
    from transformers.models.auto import CONFIG_MAPPING

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    size = {"vocab_size": len(tokenizer)}
    if kind == "gemma3n_text":
        size["vocab_size_per_layer_input"] = len(tokenizer)
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**OTHER_TYPES.get(kind, _ANY) | ids | size | changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def save_untrained(kind: str, base: Path, out: Path) -> Path:
    """A pointwise model of a type of transformers', merged and saved as a trained one is; what trains is random.

    Args:
        kind: its ``model_type``.
        base: the tiny policy.
        out: folder for it and for the model that it is made of.
    """
    import torch
    from peft import get_peft_model

    from flywheel_tasks.rewards.backbone import load_backbone
    from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer
    from flywheel_tasks.settings import Lora
    from flywheel_tasks.training.lora import lora_config, merge_to_full

    backbone = tiny_of_type(kind, base, out / "base")
    tokenizer = reward_tokenizer(backbone)
    model = load_backbone(backbone, tokenizer.pad_token_id)
    lora = lora_config(Lora(rank=4, alpha=8, layers=2), model.config, "SEQ_CLS", ["score"])
    adapted: Any = get_peft_model(model, lora)
    torch.manual_seed(1)
    for value in adapted.parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value)
    merge_to_full(adapted, tokenizer, out / "rm", probe=[5, 9, 200, 31])
    Limits("pointwise", 224, 96).save(out / "rm")
    return out / "rm"


@pytest.fixture
def reward_io(make_io: Callable[..., Any], tiny_models: Path, tmp_path: Path) -> Callable[..., Any]:
    """``reward_io("train_pointwise_rm", {...}, rows=...)``: a stage over planted pairs and a tiny base."""

    def make(
        stage: str,
        overrides: Mapping[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        root: Path = tmp_path / "work",
    ) -> Any:
        small = {"compute.threads": 1, "prompt.max_tokens": 96}
        io = make_io(stage, root, small | dict(overrides or {}))
        if not (root / "models").exists():
            (root / "models").mkdir()
            (root / "models" / "base").symlink_to(tiny_models / "base")
        rows = (
            rows
            if rows is not None
            else planted_rows(48, "reward_train") + planted_rows(24, "reward_heldout")
        )
        write_pairs(rows, root / "data" / "preferences" / "pairs.parquet")
        if not (root / reward_model_pin.PIN).exists():
            write_json(reward_model_pin.NONE, root / reward_model_pin.PIN)
            earlier_pairs.write_none(root)
        return io

    return make
