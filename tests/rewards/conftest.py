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
