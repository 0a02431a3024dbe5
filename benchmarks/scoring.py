"""Replies scored a second: the project's reward scorer against a plain transformers loop, on the same model and rows.

The plain loop pads batches in the order in which the rows arrive. Both scores of each row must agree within 1e-4
(in float32); the target is a ratio of 2. Run: ``python -m benchmarks.scoring --model models/pointwise_rm``; without a
model, ``--policy models/base`` gets a random score head, which costs the same.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.candidate_generation import chats
from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.rewards.encoding import Limits, encode_replies, reward_tokenizer
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.settings import Compute
from flywheel_tasks.training.precision import device, resolve_dtype, set_threads

TOLERANCE = 1e-4
Row = tuple[Card, Sequence[Turn], str]
_WORDS = "well I would say that the boat was late again and nobody knew why until the fog went up".split()  # noqa: SIM905


def rows_of(prompts: int, replies: int, seed: int) -> list[Row]:
    """Replies of random length to chats of random length, shuffled: rows of one prompt do not arrive together."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for card, turns in chats(prompts, seed):
        for _ in range(replies):
            rows.append(
                (card, turns, " ".join(random.choice(_WORDS, size=int(random.integers(4, 40)))) + ".")
            )
    return [rows[i] for i in random.permutation(len(rows))]


def random_scorer(policy: Path, folder: Path) -> None:
    """Save a policy with a random score head as a pointwise reward model."""
    torch.manual_seed(1)
    tokenizer = reward_tokenizer(policy)
    config = AutoConfig.from_pretrained(policy, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForSequenceClassification.from_pretrained(policy, config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Limits("pointwise", 224, 160).save(folder)


def plain(model: PreTrainedModel, folder: Path, rows: Sequence[Row], batch: int) -> list[float]:
    """Scores by ``model(**batch).logits``, padded on the right, in arrival order."""
    tokenizer, limits = reward_tokenizer(folder), Limits.load(folder, "pointwise")
    scores: list[float] = []
    for start in range(0, len(rows), batch):
        ids = []
        for card, turns, reply in rows[start : start + batch]:
            prompt, (answer,) = encode_replies(tokenizer, card, turns, [reply], limits)
            ids.append(prompt + answer)
        padded = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(model.device)
        with torch.inference_mode():
            scores += model(**padded).logits.squeeze(-1).float().tolist()
    return scores


def timed(name: str, rows: int, work: Callable[[], list[float]]) -> tuple[list[float], float]:
    """Run once and print the rate."""
    started = time.perf_counter()
    scores = work()
    rate = rows / (time.perf_counter() - started)
    print(f"{name:<22} {rows:6d} replies  {rate:8.1f} replies/s")
    return scores, rate


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a pointwise reward model.")] = None,
    policy: Annotated[
        Path, typer.Option(help="Policy that gets a random head where no model is given.")
    ] = Path("models/base"),
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 64,
    replies: Annotated[int, typer.Option(min=1, help="Replies a prompt.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch of the plain loop.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 2,
) -> None:
    """Print both rates, the largest difference of scores, and the ratio; fail where scores differ."""
    compute = Compute(precision="float32", threads=threads)
    set_threads(compute)
    with tempfile.TemporaryDirectory() as scratch:
        folder = model or Path(scratch) / "reward"
        if model is None:
            random_scorer(policy, folder)
        rows = rows_of(prompts, replies, seed=1)
        scorer = PointwiseScorer(folder, compute=compute)
        judge = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=resolve_dtype(compute), use_safetensors=True, attn_implementation="sdpa"
        )
        judge = judge.to(device()).eval()
        scorer.score(rows[:2]), plain(judge, folder, rows[:2], batch)  # warm up
        expected, slow = timed("plain loop", len(rows), lambda: plain(judge, folder, rows, batch))
        found, fast = timed("PointwiseScorer", len(rows), lambda: scorer.score(rows))
    difference = float(np.abs(np.array(expected) - np.array(found)).max())
    print(f"largest difference     {difference:.1e}\nratio                  {fast / slow:.2f}")
    if difference > TOLERANCE:
        raise SystemExit(f"scores differ by more than {TOLERANCE:g}")


if __name__ == "__main__":
    typer.run(main)
