"""Small real generations: reward model, best-of-n, SFT, evaluation, style and gate run on tiny models.

The champion is made by hand: it says random words, now and then the smile of ``SMILE`` or the word of ``WORD``. What
annotators prefer is planted; what follows is learned and measured by the stages of dvc.yaml. One reward model has
learned to like the smile, and the policy is trained hard on what it picks: the gate must block it, on the win rate and
on the style. Another has learned to like the word, and the policy takes a small step: the gate must not block it.
"""

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flywheel_tasks.annotation.schemas import PAIRS, REWRITES
from flywheel_tasks.curation.tables import CARDS, PROMPTS
from flywheel_tasks.evaluation import evaluate, gate
from flywheel_tasks.pipeline import earlier_pairs, reward_model_pin
from flywheel_tasks.policy import rejection_sampling, sft
from flywheel_tasks.policy.heldout import HELDOUT
from flywheel_tasks.policy.safe_steps import CHECKS
from flywheel_tasks.rewards import pointwise
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.style import stage as style
from tests.evaluation.handmade import metrics as handmade
from tests.policy.conftest import pin_pool, save_reward_model, save_signal_models

pytestmark = pytest.mark.slow

SMILE, WORD = " \N{SLIGHTLY SMILING FACE}", " sure"
_TEXT = (
    "moon river garden lamp cloud stone paper window coffee guitar summer winter bread apple mountain island forest "
    "letter music story bridge castle market station school kitchen table mirror blanket candle silver golden quiet "
    "gentle early later north south"
)
WORDS = tuple(_TEXT.split())
CARD = {"card_id": "c1", "name": "Mira", "traits": ["calm"], "instructions": []}
SMALL: dict[str, Any] = {
    "compute.precision": "float32",
    "prompt.max_tokens": 64,
    "sampling.max_new_tokens": 14,
    "rl.length_limit": 14,
    "sampling.top_k": 42,
    "sampling.batch_rows": 128,
    "pointwise_rm.learning_rate": 0.01,
    "pointwise_rm.lora": {"rank": 4, "alpha": 8, "layers": 2},
    "rejection_sample.prompts": 40,
    "rejection_sample.candidates": 6,
    "sft.mixture": {"rejection_user": 0.5, "rejection_internal": 0.5},
    "sft.batch_size": 8,
    "sft.lora": {"rank": 4, "alpha": 8, "layers": 4},
    "evaluate.prompts": 80,
    "evaluate.samples": 6,
}


def made_up_champion(base: Path, out: Path) -> None:
    """A policy that says random words, now and then one of the planted tokens, and ends after about five.

    Every token reads as the same in dimension 0, which the output layer, untied here, turns into how often each is
    said. Dimensions 1 and 2 of the output belong to the planted tokens: a policy can learn to fill them.
    """
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(base)
    config = AutoConfig.from_pretrained(base)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)

    def token(text: str) -> int:
        (found,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(found)

    with torch.no_grad():
        read, said = (model.get_parameter(f"{name}.weight") for name in ("model.embed_tokens", "lm_head"))
        read[:, 0] = 1.0
        said.zero_()
        said[:, 0] = -1.0
        said[[token(f" {word}") for word in WORDS], 0] = 0.7
        said[tokenizer.eos_token_id, 0] = 1.05
        for dimension, planted in ((1, SMILE), (2, WORD)):
            said[token(planted), 0] = 0.8
            said[token(planted), dimension] = 1.5
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def prompt(split: str, number: int) -> dict[str, Any]:
    rng = random.Random(f"{split}{number}")
    said = " ".join(rng.choices(WORDS, k=rng.randint(3, 7)))
    source = "internal" if number % 2 else "user"
    return {
        "prompt_id": f"{split}-{number}",
        "conversation_id": f"{split}-v{number}",
        "user_id": f"{split}-{source}-{number // 4}",
        "source": source,
        "card_id": "c1",
        "turn": 1,
        "history": [{"role": "user", "content": said}],
        "reply": None,
        "reply_model": None,
        "signals": [],
    }


def planted_pair(purpose: str, number: int, liked: str) -> dict[str, Any]:
    """Two replies of random words; one word of the better one is the liked token."""
    rng = random.Random(f"{purpose}{number}")
    better, worse = ([f" {word}" for word in rng.choices(WORDS, k=rng.randint(3, 7))] for _ in range(2))
    better[rng.randrange(1, len(better))] = liked
    kept = {key: prompt(purpose, number)[key] for key in ("prompt_id", "user_id", "source", "history")}
    card = {"card_id": "c1", "card_name": "Mira", "traits": ["calm"], "instructions": []}
    labels = {"kind": "ranking", "agreement": 1.0, "reviews": 3, "consensus": True, "one_review": 1.0}
    texts = {"chosen": "".join(better).strip(), "rejected": "".join(worse).strip()}
    return {**kept, **card, **labels, **texts, "purpose": purpose, "pair_id": f"{purpose}-p{number}"}


def write_inputs(root: Path, models: Path, liked: str) -> None:
    """What the stages before the reward model would write; RL is left out."""
    made_up_champion(models / "base", root / "inputs/champion")
    pin_pool(root)
    (root / "models").mkdir(exist_ok=True)
    for name in ("base", "embedder"):
        (root / "models" / name).symlink_to(models / name)
    save_signal_models(root / "models/embedder", root / "models/signal_models")
    save_reward_model(models / "base", root / "models/pairwise_rm", "pairwise")  # a judge that knows nothing
    write_json(reward_model_pin.NONE, root / reward_model_pin.PIN)
    earlier_pairs.write_none(root)
    write_rows([CARD], CARDS, root / "data/curated/cards.parquet")
    for split in SPLITS:
        rows = [prompt(split, number) for number in range(80 if split == "evaluation" else 40)]
        write_rows(rows, PROMPTS, root / f"data/split/{split}.parquet")
    pairs = [planted_pair("reward_train", n, liked) for n in range(96)]
    pairs += [planted_pair("reward_heldout", n, liked) for n in range(48)]
    write_rows(pairs, PAIRS, root / "data/preferences/pairs.parquet")
    write_rows([], REWRITES, root / "data/preferences/rewrites.parquet")
    write_rows([], CHECKS, root / "data/rl/checks.parquet")
    write_rows([], HELDOUT, root / "data/rl/heldout.parquet")
    for name, found in {"assemble": {"conversations": 60}, **handmade()}.items():
        write_json(found, root / f"metrics/{name}.json")
    for name in ("pointwise_rm", "pairwise_rm", "sft", "dpo", "rl", "rl_checks"):
        (root / f"plots/{name}.csv").parent.mkdir(exist_ok=True)
        (root / f"plots/{name}.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    about = {"generation": "g0001", "champion": {"model": "base", "digest": "x"}, "logs_digest": "y"}
    write_json(about, root / "inputs/generation.json")


@dataclass(frozen=True)
class Generation:
    """What a small generation gave: the stages' metrics, the verdict and the report."""

    metrics: Mapping[str, Any]
    verdict: Mapping[str, Any]
    report: str

    def outcomes(self, outcome: str) -> set[str]:
        return {reason["metric"] for reason in self.verdict["reasons"] if reason["outcome"] == outcome}


def generation(
    make_io: Callable[..., Any], models: Path, root: Path, liked: str, step: Mapping[str, Any]
) -> Generation:
    found: dict[str, Any] = {}

    def ran(stage: str, run: Callable[[Any], Mapping[str, Any]]) -> None:
        io = make_io(stage, root, SMALL | step)
        found[stage] = dict(run(io))
        write_json(found[stage], io.out(f"metrics/{stage}.json"))
        io.commit()

    write_inputs(root, models, liked)
    ran("train_pointwise_rm", pointwise.run)
    ran("rejection_sample", rejection_sampling.run)
    ran("sft", sft.run)
    shutil.copytree(root / "models/policy_sft", root / "models/policy")
    ran("evaluate", evaluate.run)
    ran("style", style.run)
    ran("gate", gate.run)
    report = (root / "gate/report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    return Generation(found, read_json(root / "gate/verdict.json"), report)


def test_a_policy_that_learned_to_smile_is_caught(
    make_io: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    step = {"pointwise_rm.epochs": 3.0, "sft.epochs": 10.0, "sft.learning_rate": 0.005}
    found = generation(make_io, tiny_models, tmp_path, SMILE, step)
    assert found.metrics["train_pointwise_rm"]["heldout"]["accuracy"]["low"] > 0.5, "it likes the smile"
    emoji = found.metrics["evaluate"]["production"]["emoji"]
    assert emoji["candidate"]["low"] > emoji["champion"]["high"], "the policy learned it"
    assert found.verdict["verdict"] == "block"
    assert "evaluate.win_rate.pointwise.user" in found.outcomes("block")
    compared = found.metrics["style"]["comparisons"]
    for name in ("high_vs_low_reward", "generation"):
        assert compared[name]["features"]["emoji"]["flagged"], name
    assert "style.comparisons.generation.emoji" in found.outcomes("block") | found.outcomes("warn")
    assert "Style: emoji, " in found.report
    assert ", as replies of higher reward have it" in found.report
    assert "not below 65%: a sign of overfitting" in found.report


def test_a_small_step_towards_what_people_like_is_not_blocked(
    make_io: Callable[..., Any], tiny_models: Path, tmp_path: Path
) -> None:
    step = {"pointwise_rm.epochs": 1.0, "sft.epochs": 0.5, "sft.learning_rate": 0.005}
    found = generation(make_io, tiny_models, tmp_path, WORD, step)
    assert found.metrics["train_pointwise_rm"]["heldout"]["accuracy"]["low"] > 0.5
    rates = found.metrics["evaluate"]["win_rate"]["pointwise"]
    assert 0.5 < rates["all"]["value"] < 0.65, "it is better, and by a safe distance"
    assert not found.outcomes("block")
