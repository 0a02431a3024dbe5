"""The trained refusal detector: the project's sentence embedder with low-rank updates, a linear head, and the rules.

The embedder reads the end of the user's turn and the reply; updates of rank 8 (Hu et al. 2021) let it see what its own
training never asked for, a no. The rules' evidence is added with a learned weight. The weights,
``refusal_model.safetensors``, are made by :mod:`flywheel_tasks.evaluation.train_refusals` and fit one embedder, named
by its digest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import tree_digest

FILE = "refusal_model.safetensors"
SCALE = 20.0  # of the unit vectors that the head reads
RULES_RANGE = (0.02, 0.98)  # the rules' probabilities are held within, as evidence
_SAID_TOKENS, _REPLY_TOKENS = 48, 160
_PACK_TOKENS = 1024
_LAYERS = 3  # the last ones get updates; below, the encoder is as it came


class RefusalModelError(ValueError):
    """The weights are missing, incomplete or not finite."""


def _path() -> Path:
    return Path(str(files("flywheel_tasks.evaluation").joinpath(FILE)))


def about() -> dict[str, str]:
    """What the weights were trained with: the embedder's digest and that of the lines; empty where there are none."""
    from safetensors import safe_open

    if not _path().is_file():
        return {}
    with safe_open(_path(), framework="np") as stored:
        return dict(stored.metadata() or {})


def problem(embedder: Path) -> str:
    """Why the weights can't be used with an embedder; empty where they can.

    Args:
        embedder: a sentence-transformers folder.
    """
    wanted = about().get("embedder")
    if wanted is None:
        return "no trained refusal model is installed"
    if (found := tree_digest(embedder)) != wanted:
        return f"the refusal model was trained on the embedder {wanted[:19]}, {embedder} is {found[:19]}"
    return ""


def token_row(tokenizer: Any, said: str, reply: str) -> list[int]:
    """Token ids that the model reads: the end of the user's turn, then the reply.

    Args:
        tokenizer: the embedder's.
        said: the user's last turn, maybe empty.
        reply: the text.
    """
    # Cut before tokenising as well: a pasted book would cost seconds for nothing.
    before: list[int] = tokenizer(said[-600:], add_special_tokens=False)["input_ids"][-_SAID_TOKENS:]
    ids: list[int] = tokenizer(reply[:2000], add_special_tokens=False)["input_ids"][:_REPLY_TOKENS]
    middle = [*before, tokenizer.sep_token_id] if before else []
    return [tokenizer.cls_token_id, *middle, *ids, tokenizer.sep_token_id]


def log_odds(probability: float) -> float:
    """Evidence of a probability of the rules."""
    low, high = RULES_RANGE
    held = min(max(probability, low), high)
    return math.log(held / (1 - held))


def targets(bert: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers of the encoder that get updates, by name."""
    layers = list(enumerate(bert.encoder.layer))
    for number, layer in layers[-_LAYERS:]:
        attention = layer.attention
        for name, linear in (
            ("query", attention.self.query),
            ("key", attention.self.key),
            ("value", attention.self.value),
            ("attended", attention.output.dense),
            ("intermediate", layer.intermediate.dense),
            ("output", layer.output.dense),
        ):
            yield f"{number}.{name}", linear


def merge(bert: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Add the low-rank updates B A to the encoder's own weights, in place.

    Args:
        bert: a BertModel.
        weights: ``<layer>.<name>.a`` [rank, in] and ``.b`` [out, rank] of each target.

    Raises:
        RefusalModelError: an update is missing.
    """
    import torch

    for name, linear in targets(bert):
        try:
            a, b = (torch.from_numpy(weights[f"{name}.{part}"].astype(np.float32)) for part in "ab")
        except KeyError as error:
            raise RefusalModelError(f"{FILE}: {error} is missing") from error
        with torch.no_grad():
            linear.weight += b @ a


class RefusalModel:
    """Probabilities of refusals by the trained model (:class:`~flywheel_tasks.evaluation.refusal_detector.Detector`).

    Args:
        embedder: the folder that :func:`problem` finds nothing wrong with.
        compute: threads.

    Raises:
        RefusalModelError: weights are missing or not finite.
    """

    name = "model"
    why = ""

    def __init__(self, embedder: Path, compute: Compute) -> None:
        import torch
        from safetensors.numpy import load_file
        from transformers import AutoModel, AutoTokenizer

        from flywheel_tasks.curation.packed_bert import PackedBert

        weights = load_file(_path())
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RefusalModelError(f"{FILE}: a weight is not a finite number")
        bert = AutoModel.from_pretrained(embedder, dtype=torch.float32, use_safetensors=True).eval()
        merge(bert, weights)
        self._packed = PackedBert(bert)
        self._tokenizer = AutoTokenizer.from_pretrained(embedder)
        self._threads = compute.threads
        self._head = weights["head"].astype(np.float64)
        self._bias, self._rules, self._model = (float(x) for x in weights["mix"])

    def margins(self, rows: Sequence[tuple[str, str]]) -> np.ndarray:
        """Log odds of the model alone, (rows,). Args as :meth:`probabilities`."""
        import torch

        from flywheel_tasks.curation.packed_bert import packs

        torch.set_num_threads(self._threads)
        place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        ids = [token_row(self._tokenizer, *row) for row in place]
        unique = np.zeros(len(ids))
        for pack in packs([len(row) for row in ids], _PACK_TOKENS):
            vectors = self._packed([ids[row] for row in pack]).numpy().astype(np.float64)
            unique[pack] = SCALE * (vectors @ self._head[:-1]) + self._head[-1]
        return unique[[place[row] for row in rows]]

    def probabilities(self, rows: Sequence[tuple[str, str]]) -> list[float]:
        """As :meth:`~flywheel_tasks.evaluation.refusal_detector.Detector.probabilities`."""
        if not rows:
            return []
        rules = np.array([log_odds(refusals.probability(reply)) for _, reply in rows])
        odds = self._bias + self._rules * rules + self._model * self.margins(rows)
        spoken = [any(mark.isalnum() for mark in reply) for _, reply in rows]
        return [
            round(1 / (1 + math.exp(-value)), 4) if said else refusals.FLOOR
            for value, said in zip(odds, spoken, strict=True)
        ]
