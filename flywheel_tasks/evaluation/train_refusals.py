"""Trains the refusal detector: ``python -m flywheel_tasks.evaluation.train_refusals``.

It learns from ``refusal_lines.txt`` and ``ordinary_replies.txt``. A seventh of the requests is held out of the training
of the updates and the head; on their lines a logistic regression weighs the model's log odds against the rules'.
Takes some minutes on two cores.
"""

import random
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.evaluation.labelled_lines import WRITTEN, Line, read_lines, text_of
from flywheel_tasks.evaluation.refusal_model import FILE, SCALE, log_odds, targets, token_row

ORDINARY = "ordinary_replies.txt"  # of the demo's base model
_HELD_OUT = 7  # every so many requests
_RANK, _ALPHA = 8, 16
_BATCH, _LEARNING_RATE, _HEAD_RATE = 32, 3e-3, 1e-2
_SMOOTHING = 0.06
# Shares of the lines that are shown without the request, or joined with others.
_WITHOUT_REQUEST, _JOINED = 0.3, 0.25


def _shown(line: Line, plain: Sequence[Line], rng: random.Random) -> tuple[str, str]:
    """What one epoch sees of a line: at times without its request, at times among sentences that refuse nothing.

    Joining keeps the label: a refusal among other talk refuses, and talk among talk does not.
    """
    said = "" if rng.random() < _WITHOUT_REQUEST else line.said
    reply = line.reply
    if rng.random() < _JOINED:
        others = [rng.choice(plain).reply for _ in range(rng.randint(1, 1 if line.refuses else 2))]
        parts = [*others, reply]
        if rng.random() < 0.5:
            rng.shuffle(parts)
        reply = " ".join(parts)
    return said, reply


class _Updated:
    """The embedder with trainable low-rank updates and a head."""

    def __init__(self, embedder: Path, seed: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, AutoTokenizer

        torch.manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(embedder)
        bert = AutoModel.from_pretrained(embedder, dtype=torch.float32, use_safetensors=True)
        names = {id(module): name for name, module in bert.named_modules()}
        chosen = [names[id(linear)] for _, linear in targets(bert)]
        lora = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=chosen)
        self.model: Any = get_peft_model(bert, lora)
        self.head = torch.nn.Linear(bert.config.hidden_size, 1)

    def margins(self, rows: Sequence[tuple[str, str]]) -> Any:
        """Log odds [rows]."""
        import torch
        import torch.nn.functional as F

        ids = [token_row(self.tokenizer, *row) for row in rows]
        shape = (len(ids), max(map(len, ids)))
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for place, row in enumerate(ids):
            tokens[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask[..., None].float()
        vectors = F.normalize((states * weight).sum(1) / weight.sum(1), dim=1)
        return self.head(SCALE * vectors).squeeze(1)

    def train(self, lines: Sequence[Line], epochs: int, seed: int) -> None:
        """Fit updates and head; the learning rate falls to zero."""
        import torch
        import torch.nn.functional as F

        rng = random.Random(seed)
        plain = [line for line in lines if not line.refuses]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.requires_grad], "lr": _LEARNING_RATE},
            {"params": list(self.head.parameters()), "lr": _HEAD_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        steps = epochs * -(-len(lines) // _BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.0, 1 - step / steps)
        )
        self.model.train()
        for epoch in range(epochs):
            losses = []
            for batch in _batches(lines, plain, rng):
                labels = torch.tensor([float(line.refuses) for line, _ in batch])
                smooth = labels * (1 - _SMOOTHING) + _SMOOTHING / 2
                loss = F.binary_cross_entropy_with_logits(self.margins([row for _, row in batch]), smooth)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            typer.echo(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")
        self.model.eval()

    def weights(self) -> dict[str, np.ndarray]:
        """The updates, scaled, as :func:`~flywheel_tasks.evaluation.refusal_model.merge` takes them; and the head."""
        found = {}
        base = self.model.get_base_model()
        for name, layer in targets(base):
            found[f"{name}.a"] = layer.lora_A["default"].weight.detach().numpy().astype(np.float16)
            scaled = layer.lora_B["default"].weight.detach().numpy() * layer.scaling["default"]
            found[f"{name}.b"] = scaled.astype(np.float16)
        head = [self.head.weight.detach().numpy().ravel(), self.head.bias.detach().numpy()]
        found["head"] = np.concatenate(head).astype(np.float32)
        return found


def _batches(
    lines: Sequence[Line], plain: Sequence[Line], rng: random.Random
) -> list[list[tuple[Line, tuple[str, str]]]]:
    """One epoch in batches of like length, in random order."""
    rows = [(line, _shown(line, plain, rng)) for line in lines]
    rng.shuffle(rows)
    found = []
    for start in range(0, len(rows), 8 * _BATCH):
        part = sorted(rows[start : start + 8 * _BATCH], key=lambda row: len(row[1][0]) + len(row[1][1]))
        found += [part[i : i + _BATCH] for i in range(0, len(part), _BATCH)]
    rng.shuffle(found)
    return found


def _mixed(updated: _Updated, lines: Sequence[Line]) -> tuple[np.ndarray, float]:
    """(bias, weight of the rules, weight of the model) on held-out lines, and how many of them it gets right."""
    import torch
    from sklearn.linear_model import LogisticRegression

    with torch.inference_mode():
        margins = [
            value
            for start in range(0, len(lines), 64)
            for value in updated.margins([(x.said, x.reply) for x in lines[start : start + 64]]).tolist()
        ]
    rules = [log_odds(refusals.probability(line.reply)) for line in lines]
    features = np.column_stack([rules, margins])
    labels = np.array([line.refuses for line in lines])
    fitted = LogisticRegression().fit(features, labels)
    mix = np.array([fitted.intercept_[0], *fitted.coef_[0]], dtype=np.float32)
    return mix, float(fitted.score(features, labels))


def main(
    embedder: Annotated[Path, typer.Option(help="Sentence-transformers folder.")] = Path("models/embedder"),
    lines: Annotated[Path | None, typer.Option(help="Labelled lines; the project's own by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Weights; the installed ones by default.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train, weigh against the rules, and write the weights."""
    import torch
    from safetensors.numpy import save_file

    from flywheel_tasks.storage.atomic import atomic_path
    from flywheel_tasks.storage.digests import tree_digest

    torch.set_num_threads(threads)
    text = lines.read_text(encoding="utf-8") if lines else text_of(WRITTEN, ORDINARY)
    labelled = read_lines(text)
    held_out = [line for line in labelled if line.request % _HELD_OUT == 0]
    updated = _Updated(embedder, seed)
    updated.train([line for line in labelled if line.request % _HELD_OUT], epochs, seed)
    mix, right = _mixed(updated, held_out)
    typer.echo(f"held out: {right:.3f} of {len(held_out)} lines right; bias, rules, model: {mix.round(3)}")
    about = {"embedder": tree_digest(embedder), "lines": sha256(text.encode()).hexdigest()}
    with atomic_path(out or Path(str(files("flywheel_tasks.evaluation").joinpath(FILE)))) as temporary:
        save_file({**updated.weights(), "mix": mix}, temporary, metadata=about)


if __name__ == "__main__":
    typer.run(main)
