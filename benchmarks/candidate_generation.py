"""Candidate replies a second: the project's sampler against ``model.generate`` on the same prompts.

Run: ``python -m benchmarks.candidate_generation --model models/base``; the target is 1.5 times the tokens a second.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import AutoModelForCausalLM, PreTrainedModel

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.chat.prompt import prompt_ids
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.settings import Compute, load_settings
from flywheel_tasks.training.precision import device, resolve_dtype

_TEXT = "so I walked along the river this morning and thought about our garden, my old job and you"


_NAMES = ("Mira", "Anselm", "Bo", "Ines", "Kito", "Lev", "Oona", "Pavel", "Ruth", "Sol", "Tama", "Yusuf")


def chats(count: int, seed: int) -> list[tuple[Card, list[Turn]]]:
    """Chats of random length with a dozen characters, in an order that has to do with neither, as traffic has."""
    random = np.random.default_rng(seed)
    cards = [
        Card(
            name,
            f"Captain {name}",
            ("a retired sea captain", "dry humour", "loves maps"),
            ("Answer in at most two sentences.", "Never use emoji."),
        )
        for name in _NAMES
    ]
    found = []
    for _ in range(count):
        card = cards[int(random.integers(len(cards)))]
        turns: list[Turn] = []
        for number in range(2 * int(random.integers(0, 3)) + 1):
            text = " ".join(random.choice(_TEXT.split(), size=int(random.integers(4, 25))))
            turns.append({"role": "assistant" if number % 2 else "user", "content": text})
        found.append((card, turns))
    return found


def _plain(model: PreTrainedModel, sampler: Sampler, rows: list[list[int]], n: int) -> int:
    """``model.generate`` in arrival order, the prompt repeated for each candidate; tokens made."""
    sampling, made = sampler.sampling, 0
    generate: Any = model.generate
    size = sampling.prompts_a_batch(n)
    pad, ends = sampler.tokenizer.pad_token_id, sorted(sampler.end_ids)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        out = generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=n,
            eos_token_id=ends,
            pad_token_id=pad,
        )
        for reply in out[:, width:].tolist():
            stop = next((i + 1 for i, token in enumerate(reply) if token in sampler.end_ids), len(reply))
            made += stop
    return made


def _timed(name: str, work: Callable[[], int]) -> float:
    started = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - started
    print(f"{name:<16} {made:6d} tokens  {seconds:7.1f} s  {made / seconds:7.1f} tokens/s")
    return made / seconds


def main(
    model: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/base"),
    prompts: Annotated[int, typer.Option(help="Number of prompts.")] = 24,
    candidates: Annotated[int, typer.Option(help="Replies a prompt.")] = 4,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 2,
) -> None:
    """Print both rates and their ratio."""
    settings = load_settings(Path("params.yaml"))
    compute = Compute(precision=settings.compute.precision, threads=threads)
    sampler = Sampler(
        model, sampling=settings.sampling, compute=compute, max_prompt_tokens=settings.prompt.max_tokens
    )
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=resolve_dtype(compute), use_safetensors=True)
    peer = peer.to(device()).eval()  # type: ignore[arg-type]
    asked = chats(prompts, 1)
    rows = [prompt_ids(sampler.tokenizer, card, turns, settings.prompt.max_tokens) for card, turns in asked]
    alike = [card for card, _ in asked]
    mean = np.mean([len(row) for row in rows])
    print(f"{prompts} prompts of {mean:.0f} tokens on average, {candidates} replies each")
    sampler.sample_ids(rows[:2], 1, seed=0), _plain(peer, sampler, rows[:2], 1)  # warm up
    torch.manual_seed(0)
    plain = _timed("model.generate", lambda: _plain(peer, sampler, rows, candidates))
    drawn = _timed(
        "Sampler",
        lambda: sum(len(r) for p in sampler.sample_ids(rows, candidates, seed=0, alike=alike) for r in p),
    )
    print(f"ratio {drawn / plain:.2f}")


if __name__ == "__main__":
    typer.run(main)
