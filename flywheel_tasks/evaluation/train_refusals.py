"""Trains the refusal detector: ``python -m flywheel_tasks.evaluation.train_refusals``.

It learns from ``refusal_lines.txt``, ``ordinary_replies.txt`` and ``lines/*.txt``, by binary cross-entropy. Some
requests are kept out, with all their lines: they tell how often it is right, and how sure it may be. Takes about ten
minutes on two cores with bfloat16.
"""

import math
import random
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from flywheel_tasks.evaluation.labelled_lines import WRITTEN, Line, read_lines, text_of
from flywheel_tasks.evaluation.lines import FILES
from flywheel_tasks.evaluation.refusal_model import ALL_SCRIPTS, CALIBRATION, FILE
from flywheel_tasks.evaluation.refusal_net import RefusalNet, padded
from flywheel_tasks.evaluation.refusals import reads
from flywheel_tasks.settings import Compute
from flywheel_tasks.training.precision import resolve_dtype, set_threads

ORDINARY = "ordinary_replies.txt"  # of the demo's base model
_HELD_OUT = 8  # one in so many requests
_EPOCHS, _BATCH, _RATE, _WARM = 3, 32, 1e-3, 0.1
_SMOOTH = 0.03  # of the labels: some of any hand's are wrong
_CHUNK = 20 * _BATCH  # rows that are sorted by length at once
# Among replies of a chat model a refusal is rarer than among the lines: the odds are shifted to such a share.
_SHARE = 0.05
_OTHER_SCRIPTS = 0.05  # of the lines: from such a share on the model reads more than Latin
_SEED = 1


def training_text() -> str:
    """All lines that the installed weights learned from."""
    return text_of(WRITTEN, ORDINARY, *(f"lines/{name}" for name in FILES))


def _batches(lengths: Sequence[int], rng: random.Random) -> Iterator[list[int]]:
    """Places of rows in batches of like length, epoch after epoch, in another order each time."""
    while True:
        order = rng.sample(range(len(lengths)), len(lengths))
        chunks = [
            sorted(order[start : start + _CHUNK], key=lambda place: lengths[place])
            for start in range(0, len(order), _CHUNK)
        ]
        batches = [chunk[k : k + _BATCH] for chunk in chunks for k in range(0, len(chunk), _BATCH)]
        rng.shuffle(batches)
        yield from batches


def fit(net: RefusalNet, lines: Sequence[Line], dtype: torch.dtype) -> None:
    """Train the updates and the head.

    Args:
        net: changed in place.
        lines: labelled.
        dtype: of the matrix products; weights and sums are float32.
    """
    read = net.read([(line.said, line.reply) for line in lines])
    wanted = torch.tensor([1 - _SMOOTH if line.refuses else _SMOOTH for line in lines])
    steps = _EPOCHS * -(-len(lines) // _BATCH)
    learned = [value for value in net.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (_WARM * steps)) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    net.train()
    started = time.monotonic()
    batches = _batches([len(ids) for ids, _ in read], random.Random(_SEED))
    for step, places in zip(range(1, steps + 1), batches, strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            odds = net(*padded([read[place] for place in places]))
        loss = nn.functional.binary_cross_entropy_with_logits(odds.float(), wanted[places])
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            left = (time.monotonic() - started) / step * (steps - step)
            typer.echo(f"step {step}/{steps}, loss {loss.item():.3f}, {left:.0f} s left")


def calibration(odds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Bias and slope of the log odds (Platt), for a share of refusals of :data:`_SHARE`.

    Args:
        odds: of lines that were not trained on.
        labels: theirs, both kinds.
    """
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression().fit(odds[:, None], labels)
    here = labels.mean()
    shift = np.log(_SHARE / (1 - _SHARE)) - np.log(here / (1 - here))
    return np.array([found.intercept_[0] + shift, found.coef_[0, 0]], np.float32)


def main(
    embedder: Annotated[Path, typer.Option(help="Sentence-transformers folder.")] = Path("models/embedder"),
    lines: Annotated[Path | None, typer.Option(help="Labelled lines; the project's own by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Weights; the installed ones by default.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train, calibrate on requests that were kept out, and write the weights."""
    from safetensors.numpy import save_file

    from flywheel_tasks.storage.atomic import atomic_path
    from flywheel_tasks.storage.digests import tree_digest

    compute = Compute(precision="auto", threads=threads)
    set_threads(compute)
    torch.manual_seed(_SEED)
    text = lines.read_text(encoding="utf-8") if lines else training_text()
    labelled = read_lines(text)
    held_out = [line for line in labelled if line.request % _HELD_OUT == 0]
    net = RefusalNet(embedder)
    fit(net, [line for line in labelled if line.request % _HELD_OUT], resolve_dtype(compute))
    odds = net.log_odds([(line.said, line.reply) for line in held_out])
    labels = np.array([line.refuses for line in held_out])
    right = ((odds > 0) == labels).mean()
    typer.echo(
        f"{right:.3f} right of {len(held_out)} lines whose requests were kept out of {len(labelled)} lines"
    )
    about = {"embedder": tree_digest(embedder), "lines": sha256(text.encode()).hexdigest()}
    unread = sum(not reads(line.reply) for line in labelled)
    if unread >= _OTHER_SCRIPTS * len(labelled):
        about[ALL_SCRIPTS] = f"{unread} of {len(labelled)} lines"
    with atomic_path(out or Path(str(files("flywheel_tasks.evaluation").joinpath(FILE)))) as temporary:
        save_file(net.weights() | {CALIBRATION: calibration(odds, labels)}, temporary, metadata=about)


if __name__ == "__main__":
    typer.run(main)
