"""Hand-made inputs of the policy stages: a card, users' prompts, replies, pairs, tiny random models."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flywheel_tasks.annotation.schemas import PAIRS, REWRITES
from flywheel_tasks.curation.tables import CARDS, PROMPTS
from flywheel_tasks.policy.rejection_sampling import ACCEPTED
from flywheel_tasks.rewards.encoding import Kind
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import write_rows
from tests.policy.chat_server import Server, chat_server

WORDS = ["moon", "river", "garden", "lamp", "cloud", "stone", "paper", "window", "kettle", "violin"]
CARD = {"card_id": "c1", "name": "Mira", "traits": ["calm"], "instructions": ["Never use emoji."]}
SMALL: dict[str, Any] = {
    "compute.threads": 1,
    "compute.precision": "float32",
    "prompt.max_tokens": 96,
    "sampling.max_new_tokens": 8,
    "sampling.batch_rows": 16,
    "rejection_sample.prompts": 6,
    "rejection_sample.candidates": 3,
    "sft.epochs": 1.0,
    "sft.batch_size": 4,
    "sft.max_tokens": 128,
    "sft.lora": {"rank": 4, "alpha": 8, "layers": 2},
    "dpo.pairs": {"preferences": 6},
    "dpo.batch_size": 2,
    "dpo.max_tokens": 128,
    "dpo.lora": {"rank": 4, "alpha": 8, "layers": 2},
    "rl.steps": 2,
    "rl.prompts_per_step": 2,
    "rl.group_size": 3,
    "rl.select_from": 6,
    "rl.heldout_prompts": 4,
    "rl.heldout_samples": 2,
    "rl.check_every": 2,
    "rl.length_limit": 4,
    "rl.lora": {"rank": 4, "alpha": 8, "layers": 2},
}


@pytest.fixture
def server() -> Iterator[Server]:
    """A remote policy."""
    with chat_server() as started:
        yield started


def clear_choices(folder: Path, std: float) -> Any:
    """A tiny model, initialised wider than the library does, so that greedy choices are clear and attention matters."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=std)
    return model.eval()


def greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """What ``model.generate`` says without chance."""
    import torch

    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        max_new_tokens=limit,
    )
    return out[0, len(prompt) :].tolist()


def words(seed: str, least: int, most: int) -> str:
    random_ = random.Random(seed)
    return " ".join(random_.choices(WORDS, k=random_.randint(least, most)))


def prompt_row(split: str, number: int) -> dict[str, Any]:
    return {
        "prompt_id": f"{split}-{number}",
        "conversation_id": f"{split}-v{number}",
        "user_id": f"{split}-u{number // 2}",
        "source": "internal" if number % 4 == 0 else "user",
        "card_id": "c1",
        "turn": 1,
        "history": [{"role": "user", "content": words(f"{split}{number}", 2, 12)}],
        "reply": words(f"reply{split}{number}", 3, 9),
        "reply_model": "base",
        "signals": [],
    }


def context(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("prompt_id", "user_id", "source", "history")}
    return kept | {
        "card_id": CARD["card_id"],
        "card_name": CARD["name"],
        "traits": CARD["traits"],
        "instructions": CARD["instructions"],
    }


def pair_rows(purpose: str, count: int) -> list[dict[str, Any]]:
    return [
        context(prompt_row(purpose, number))
        | {
            "purpose": purpose,
            "pair_id": f"{purpose}-p{number}",
            "chosen": words(f"chosen{number}", 3, 9),
            "rejected": words(f"rejected{number}", 3, 9) + ".",
            "kind": "rewrite" if number % 2 else "ranking",
            "agreement": 1.0,
        }
        for number in range(count)
    ]


def rewrite_rows(purpose: str, count: int, text: str | None = None) -> list[dict[str, Any]]:
    return [
        context(prompt_row(purpose, number))
        | {"purpose": purpose, "rejected": "no", "rewrite": text or words(f"rewrite{number}", 3, 9)}
        for number in range(count)
    ]


def accepted_rows(count: int, text: str | None = None) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        row = context(prompt_row("policy_train", number))
        del row["user_id"]
        reply = {"reply": text or words(f"accepted{number}", 3, 9), "reward": 0.5}
        rows.append(row | reply | {"candidate_id": f"{row['prompt_id']}:champion:0"})
    return rows


def save_reward_model(base: Path, folder: Path, kind: Kind = "pointwise") -> None:
    """A tiny random reward model."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer

    tokenizer = reward_tokenizer(base)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Limits(kind, 128, 96).save(folder)


def save_signal_models(embedder: Path, folder: Path) -> None:
    """Random heads for two signals; the others could not be trained."""
    from flywheel_tasks.rewards.signals import Head, save_heads
    from flywheel_tasks.settings import SIGNALS

    random_ = np.random.default_rng(0)
    heads: dict[str, Head | None] = dict.fromkeys(SIGNALS)
    trained = {name: Head(random_.normal(size=3 * 384), 0.0) for name in ("continue", "thumb_down")}
    save_heads(heads | trained, embedder, folder)


def pin_pool(root: Path, **folders: Path) -> None:
    """Pin the champion, and policies in other folders, for rejection sampling."""
    places = {"champion": root / "inputs/champion"} | folders
    rows = [
        {"name": name, "path": str(path), "digest": tree_digest(path), "model": name}
        for name, path in places.items()
    ]
    write_json({"policies": rows}, root / "inputs/rejection_pool.json")


def write(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(rows, schema, path)


@pytest.fixture(scope="session")
def policy_inputs(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """All inputs of the policy stages but the pinned pool, made once, and torch's random state after their making."""
    import torch

    root = tmp_path_factory.mktemp("policy-inputs")
    for place in ("inputs/champion", "models/policy_sft", "models/policy_dpo"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(tiny_models / "base", root / place)
    (root / "models" / "embedder").symlink_to(tiny_models / "embedder")
    save_reward_model(tiny_models / "base", root / "models" / "pointwise_rm")
    save_reward_model(tiny_models / "base", root / "models" / "pairwise_rm", "pairwise")
    save_signal_models(root / "models" / "embedder", root / "models" / "signal_models")
    write([CARD], CARDS, root / "data/curated/cards.parquet")
    for split, count in (("policy_train", 12), ("policy_heldout", 8)):
        write([prompt_row(split, n) for n in range(count)], PROMPTS, root / f"data/split/{split}.parquet")
    pairs = pair_rows("policy", 8) + pair_rows("reward_train", 4) + pair_rows("reward_heldout", 4)
    write(pairs, PAIRS, root / "data/preferences/pairs.parquet")
    rewrites = rewrite_rows("policy", 4) + rewrite_rows("reward_train", 3)
    write(rewrites, REWRITES, root / "data/preferences/rewrites.parquet")
    write(accepted_rows(6), ACCEPTED, root / "data/rejection/accepted.parquet")
    return root, torch.get_rng_state()


@pytest.fixture
def policy_io(
    make_io: Callable[..., Any], policy_inputs: tuple[Path, Any], tmp_path: Path
) -> Callable[..., Any]:
    """``policy_io("sft", {...})``: a stage over hand-made inputs, all of them, in a workspace of its own."""
    import torch

    inputs, random_state = policy_inputs

    def make(stage: str, overrides: Mapping[str, Any] | None = None, root: Path = tmp_path / "work") -> Any:
        io = make_io(stage, root, SMALL | dict(overrides or {}))
        if (root / "models").exists():
            return io
        shutil.copytree(inputs, root, symlinks=True, dirs_exist_ok=True)  # no links: tests write into models
        pin_pool(root)  # by absolute paths
        torch.manual_seed(1)  # devices too
        torch.set_rng_state(random_state)  # no test may depend on those that ran before it
        return io

    return make
