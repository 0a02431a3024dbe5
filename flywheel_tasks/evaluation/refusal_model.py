"""The trained refusal detector: :mod:`flywheel_tasks.evaluation.refusal_net` with learned weights, and the rules.

Where the rules alone call a reply a refusal, it is one. The weights, ``refusal_model.safetensors``, are made by
:mod:`flywheel_tasks.evaluation.train_refusals` and fit one embedder, named by its digest.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.settings import Compute
from flywheel_tasks.storage.digests import tree_digest

FILE = "refusal_model.safetensors"
ALL_SCRIPTS = (
    "all_scripts"  # in what :func:`about` gives, where lines in other scripts than Latin were learned
)
CALIBRATION = "calibration"  # bias and slope that make probabilities of the network's log odds


class RefusalModelError(ValueError):
    """The weights are missing, incomplete or not finite."""


def _path() -> Path:
    return Path(str(files("flywheel_tasks.evaluation").joinpath(FILE)))


def about() -> dict[str, str]:
    """What the weights were trained with: digests of embedder and lines, and scripts; empty where there are none."""
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

        from flywheel_tasks.evaluation.refusal_net import RefusalNet

        weights = load_file(_path())
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RefusalModelError(f"{FILE}: a weight is not a finite number")
        self._threads = compute.threads
        self._all_scripts = ALL_SCRIPTS in about()
        self._net = RefusalNet(embedder)
        try:
            self._bias, self._slope = weights.pop(CALIBRATION).astype(np.float64)
            self._net.load(weights)
        except KeyError as error:
            raise RefusalModelError(f"{FILE}: {error} is missing") from error

    def probabilities(self, rows: Sequence[tuple[str, str]]) -> list[float | None]:
        """As :meth:`~flywheel_tasks.evaluation.refusal_detector.Detector.probabilities`."""
        import torch

        torch.set_num_threads(self._threads)
        place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        if not place:
            return []
        unique = list(place)
        found = 1 / (1 + np.exp(-(self._bias + self._slope * self._net.log_odds(unique))))
        # The rules are nearly always right when they speak, in the set words of assistants.
        by_rules = np.array([refusals.probability(reply) for _, reply in unique])
        found = np.where(by_rules >= refusals.THRESHOLD, np.maximum(found, by_rules), found)
        return [self._told(row[1], round(float(found[place[row]]), 4)) for row in rows]

    def _told(self, reply: str, probability: float) -> float | None:
        if not any(mark.isalnum() for mark in reply):
            return refusals.FLOOR
        return probability if self._all_scripts else refusals.as_read(reply, probability)
