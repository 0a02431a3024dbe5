"""Sentences a second: the project's embedder against ``SentenceTransformer.encode`` at its defaults.

Run: ``python -m benchmarks.embedding --model models/embedder --texts chats.txt`` (one prompt a line; without it,
prompts of random words with the lengths of chat turns).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sentence_transformers import SentenceTransformer

from flywheel_tasks.curation.embedding import PromptEmbedder
from flywheel_tasks.settings import Compute

_TEXT = (
    "so I walked along the river this morning and thought about our garden my old job and you what do you think "
    "we should cook tonight if your sister comes over with the children because rain is coming and nobody likes it"
)
_OPENERS = ("Hi!", "hello", "How are you today?", "Tell me about yourself.", "I missed you")


def made_up(count: int, repeats: float, seed: int) -> list[str]:
    """Prompts as chat traffic has them: log-normal lengths, and openers that many users send.

    Args:
        count: of prompts.
        repeats: share of them that are one of a few openers.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        turns = [
            " ".join(random.choice(_TEXT.split(), size=min(180, max(1, int(random.lognormal(2.3, 0.7))))))
            for _ in range(2)
        ]
        texts.append("\n".join(("Mae", _OPENERS[int(random.integers(len(_OPENERS)))])))
        if random.random() >= repeats:
            texts[-1] = "\n".join(("Mae", *turns))
    return texts


def _seconds(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    vectors = work()
    return time.perf_counter() - started, vectors


def main(
    model: Annotated[Path, typer.Option(help="Embedder folder.")] = Path("models/embedder"),
    texts: Annotated[Path | None, typer.Option(help="Prompts, one a line.")] = None,
    count: Annotated[int, typer.Option(help="Prompts.")] = 2000,
    repeats: Annotated[float, typer.Option(help="Share of openers among made-up prompts.")] = 0.1,
    threads: Annotated[int, typer.Option(help="Torch threads, both.")] = 2,
    rounds: Annotated[int, typer.Option(help="Runs of each, in turn; the median counts.")] = 3,
) -> None:
    """Print both rates, their ratio and the largest difference of the vectors."""
    if texts is None:
        prompts = made_up(count, repeats, 1)
    else:
        lines = texts.read_text(encoding="utf-8").splitlines()
        prompts = [line.replace("\\n", "\n") for line in lines if line.strip()][:count]
    torch.set_num_threads(threads)
    plain = SentenceTransformer(str(model), local_files_only=True, device="cpu")
    ours = PromptEmbedder(model, Compute(precision="float32", threads=threads))
    lengths = [min(256, len(row)) for row in plain.tokenizer(prompts)["input_ids"]]
    print(
        f"{len(prompts)} prompts, {len(set(prompts))} different, tokens: mean {np.mean(lengths):.1f}, "
        f"median {np.median(lengths):.0f}, largest {max(lengths)}; {threads} threads, float32"
    )
    for warm in (plain.encode, ours.encode):
        warm(prompts[:64])
    times: dict[str, list[float]] = {"SentenceTransformer.encode": [], "PromptEmbedder": []}
    for _ in range(rounds):
        seconds, expected = _seconds(lambda: plain.encode(prompts))
        times["SentenceTransformer.encode"].append(seconds)
        seconds, found = _seconds(lambda: ours.encode(prompts))
        times["PromptEmbedder"].append(seconds)
    for name, measured in times.items():
        rates = [len(prompts) / value for value in measured]
        print(
            f"{name:<28} {np.median(rates):8.1f} sentences/s  (runs: {', '.join(f'{r:.0f}' for r in rates)})"
        )
    ratios = np.array(times["SentenceTransformer.encode"]) / np.array(times["PromptEmbedder"])
    print(f"ratio {np.median(ratios):.2f} (runs: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"largest difference of a vector's element: {np.abs(expected - found).max():.1e}")


if __name__ == "__main__":
    typer.run(main)
