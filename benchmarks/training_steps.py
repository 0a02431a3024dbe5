"""Training steps a second on a CPU in bfloat16: as the stages train, against peft's adapters as they are.

Both are forward, backward and optimiser of the same model with the same adapters, rows and learning rate, by turns; the
losses of the first step must agree. Run: ``python -m benchmarks.training_steps --model models/base``.
"""

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from flywheel_tasks.settings import Compute, Lora
from flywheel_tasks.training.cpu_steps import fast_steps
from flywheel_tasks.training.lora import lora_config
from flywheel_tasks.training.precision import cpu_has_bfloat16, set_threads

TOLERANCE = 0.05  # of the first step's loss, relative: rounding of bfloat16


class Steps:
    """One way to train, on the same rows each time: ``reply`` tokens of each row are learned."""

    def __init__(self, folder: Path, rows: int, tokens: int, reply: int, rank: int, *, fast: bool) -> None:
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        lora = Lora(rank=rank, alpha=2 * rank, layers=plain.config.num_hidden_layers)
        self._model = get_peft_model(plain, lora_config(lora, plain.config, "CAUSAL_LM")).train()
        self._ids = torch.randint(0, plain.config.vocab_size, (rows, tokens))
        self._reply, self._fast = reply, fast
        trained = [weight for weight in self._model.parameters() if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(trained, lr=1e-4)

    def _faster(self) -> AbstractContextManager[None]:
        rows, longest = self._ids.shape
        return (
            fast_steps(self._model, bfloat16=True, rows=rows, longest=longest)
            if self._fast
            else nullcontext()
        )

    def run(self, steps: int) -> tuple[float, list[float]]:
        """Train so many steps; returns the first loss and the seconds of each."""
        losses, seconds = [], []
        with self._faster():
            for _ in range(steps):
                start = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    kept = self._reply + 1
                    logits = self._model(
                        input_ids=self._ids, attention_mask=torch.ones_like(self._ids), logits_to_keep=kept
                    ).logits
                    targets = self._ids[:, -self._reply :]
                    loss = torch.nn.functional.cross_entropy(
                        logits[:, :-1].float().flatten(0, 1), targets.flatten()
                    )
                loss.backward()
                self._optimiser.step()
                self._optimiser.zero_grad()
                losses.append(loss.item())
                seconds.append(time.perf_counter() - start)
        return losses[0], seconds


def main(
    model: Annotated[Path, typer.Option(help="Folder of a causal language model.")],
    rows: Annotated[int, typer.Option(help="Of a step.")] = 8,
    tokens: Annotated[int, typer.Option(help="Of a row.")] = 140,
    reply: Annotated[int, typer.Option(help="Of these, learned.")] = 30,
    rank: Annotated[int, typer.Option(help="Of the adapters.")] = 32,
    turns: Annotated[int, typer.Option(help="Of each, by turns.")] = 4,
    threads: Annotated[int, typer.Option(help="torch threads.")] = 2,
) -> None:
    """Print seconds a step of both, and the ratio."""
    set_threads(Compute(precision="bfloat16", threads=threads))
    ways = {name: Steps(model, rows, tokens, reply, rank, fast=name == "ours") for name in ("peft", "ours")}
    first = {name: way.run(2)[0] for name, way in ways.items()}  # and so both are warm
    if not abs(first["ours"] - first["peft"]) <= TOLERANCE * first["peft"]:
        raise SystemExit(f"the losses differ: {first}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            seconds[name] += way.run(3)[1]
    median = {name: statistics.median(found) for name, found in seconds.items()}
    hardware = "bfloat16 in hardware" if cpu_has_bfloat16() else "bfloat16 emulated"
    typer.echo(f"{rows} rows of {tokens} tokens, adapters of rank {rank}, {threads} threads, {hardware}")
    for name, found in seconds.items():
        typer.echo(
            f"{name}: median {median[name]:.2f} s a step ({min(found):.2f} to {max(found):.2f}, {len(found)} steps)"
        )
    typer.echo(
        f"ratio {median['peft'] / median['ours']:.2f}; first losses {first['peft']:.4f} and {first['ours']:.4f}"
    )


if __name__ == "__main__":
    typer.run(main)
