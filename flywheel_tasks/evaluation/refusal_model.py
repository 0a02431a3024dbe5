"""The trained refusal detector: linear weights over the sentence embedder's states, over n-grams, and the rules.

The embedder, as it came, reads the end of the user's turn and the reply; mean and maximum of each of its last layers
over the reply's tokens, hashed runs of one to three words, and the rules' evidence are weighed by logistic
regressions. Where the rules alone call a reply a refusal, it is one. The weights, ``refusal_model.safetensors``, are
made by :mod:`flywheel_tasks.evaluation.train_refusals` and fit one embedder, named by its digest.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.style.text import straight

FILE = "refusal_model.safetensors"
RULES_RANGE = (0.02, 0.98)  # the rules' probabilities are held within, as evidence
_LAYERS = 4  # the last ones are read
_GRAMS = 2**15
_SAID_TOKENS, _REPLY_TOKENS = 48, 160
_BATCH = 32
_WORDS = r"[a-z']+|[.!?*…\"]"


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
        # No path: this becomes part of the metrics, which are the same in every folder.
        return f"the refusal model was trained on the embedder {wanted[:19]}, this one is {found[:19]}"
    return ""


def token_row(tokenizer: Any, said: str, reply: str) -> tuple[list[int], int]:
    """Token ids that the model reads, the end of the user's turn and then the reply; and where the reply begins.

    Args:
        tokenizer: the embedder's.
        said: the user's last turn, maybe empty.
        reply: the text.
    """
    # Cut before tokenising as well: a pasted book would cost seconds for nothing.
    before: list[int] = tokenizer(said[-600:], add_special_tokens=False)["input_ids"][-_SAID_TOKENS:]
    ids: list[int] = tokenizer(reply[:2000], add_special_tokens=False)["input_ids"][:_REPLY_TOKENS]
    start = [tokenizer.cls_token_id, *before, *([tokenizer.sep_token_id] if before else [])]
    return [*start, *ids, tokenizer.sep_token_id], len(start)


def log_odds(probability: float) -> float:
    """Evidence of a probability of the rules."""
    low, high = RULES_RANGE
    held = min(max(probability, low), high)
    return math.log(held / (1 - held))


class Reader:
    """What the detector reads of replies.

    Args:
        embedder: a sentence-transformers folder with a BERT.
        threads: of the encoder.
    """

    def __init__(self, embedder: Path, threads: int) -> None:
        import torch
        from sklearn.feature_extraction.text import HashingVectorizer
        from transformers import AutoModel, AutoTokenizer

        self._bert = AutoModel.from_pretrained(embedder, dtype=torch.float32, use_safetensors=True).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(embedder)
        self._threads = threads
        self._grams = HashingVectorizer(
            n_features=_GRAMS, ngram_range=(1, 3), token_pattern=_WORDS, alternate_sign=False
        )

    def grams(self, rows: Sequence[tuple[str, str]]) -> Any:
        """Hashed runs of words of the replies, a sparse unit row each, (rows, 2^15)."""
        return self._grams.transform([straight(reply[:2000]).lower() for _, reply in rows])

    def states(self, rows: Sequence[tuple[str, str]]) -> np.ndarray:
        """Mean and maximum of the last layers over the reply's tokens, (rows, layers x 2 x D), float32."""
        import torch

        torch.set_num_threads(self._threads)
        read = [token_row(self._tokenizer, *row) for row in rows]
        order = sorted(range(len(read)), key=lambda place: len(read[place][0]))
        width = min(_LAYERS, self._bert.config.num_hidden_layers) * 2 * self._bert.config.hidden_size
        found = np.zeros((len(read), width), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            found[places] = self._pooled([read[place] for place in places])
        return found

    def _pooled(self, read: Sequence[tuple[list[int], int]]) -> np.ndarray:
        import torch

        shape = (len(read), max(len(ids) for ids, _ in read))
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        reply = torch.zeros(shape, dtype=torch.bool)
        for place, (ids, begin) in enumerate(read):
            tokens[place, : len(ids)], mask[place, : len(ids)] = torch.tensor(ids), 1
            reply[place, begin : len(ids)] = True
        with torch.inference_mode():
            layers = self._bert(
                input_ids=tokens, attention_mask=mask, output_hidden_states=True
            ).hidden_states
            weight, outside = reply[..., None].float(), ~reply[..., None]
            parts = []
            for state in layers[1:][-_LAYERS:]:
                parts.append((state * weight).sum(1) / weight.sum(1))
                parts.append(state.masked_fill(outside, -math.inf).amax(1))
            pooled: np.ndarray = torch.cat(parts, dim=1).numpy()
        return pooled


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
        from safetensors.numpy import load_file

        weights = load_file(_path())
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RefusalModelError(f"{FILE}: a weight is not a finite number")
        try:
            self._states, self._grams, mix = (
                weights[part].astype(np.float64) for part in ("states", "grams", "mix")
            )
        except KeyError as error:
            raise RefusalModelError(f"{FILE}: {error} is missing") from error
        self._bias, self._mix = float(mix[0]), mix[1:]
        self._reader = Reader(embedder, compute.threads)

    def probabilities(self, rows: Sequence[tuple[str, str]]) -> list[float]:
        """As :meth:`~flywheel_tasks.evaluation.refusal_detector.Detector.probabilities`."""
        place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        if not place:
            return []
        unique = list(place)
        by_rules = np.array([refusals.probability(reply) for _, reply in unique])
        evidence = np.column_stack(
            [
                self._reader.states(unique).astype(np.float64) @ self._states[:-1] + self._states[-1],
                self._reader.grams(unique) @ self._grams[:-1] + self._grams[-1],
                [log_odds(value) for value in by_rules],
            ]
        )
        found = 1 / (1 + np.exp(-(self._bias + evidence @ self._mix)))
        # The rules are nearly always right when they speak, in the set words of assistants.
        found = np.where(by_rules >= refusals.THRESHOLD, np.maximum(found, by_rules), found)
        return [
            round(float(found[place[row]]), 4) if any(mark.isalnum() for mark in row[1]) else refusals.FLOOR
            for row in rows
        ]
