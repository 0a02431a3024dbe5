"""Who decides whether a reply refuses: the rules alone, or the trained model with the rules as one of its features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.settings import Compute


class Detector(Protocol):
    """Probabilities of refusals.

    Attributes:
        name: ``rules`` or ``model``, as metrics name it.
        why: where the rules decide, why no model does; else empty.
    """

    name: str
    why: str

    def probabilities(self, rows: Sequence[tuple[str, str]]) -> list[float | None]:
        """How likely a reader would say that each reply refuses; None where it is in a script that cannot be read.

        Args:
            rows: (the user's last turn, maybe empty; the reply) of each.
        """
        ...


class Rules:
    """The patterns of :mod:`flywheel_tasks.evaluation.refusals`: without a model, at once.

    Args:
        why: why no model decides.
    """

    name = "rules"

    def __init__(self, why: str = "") -> None:
        self.why = why

    def probabilities(self, rows: Sequence[tuple[str, str]]) -> list[float | None]:
        """As :meth:`Detector.probabilities`."""
        return [refusals.as_read(reply, refusals.probability(reply)) for _, reply in rows]


def open_detector(embedder: Path, compute: Compute) -> Detector:
    """The trained model where the embedder that it was trained on is there; else the rules, with the reason.

    Args:
        embedder: a sentence-transformers folder; it may be absent.
        compute: threads.
    """
    if not embedder.is_dir():
        return Rules(f"{embedder}: no such folder")
    from flywheel_tasks.evaluation.refusal_model import RefusalModel, problem

    if why := problem(embedder):
        return Rules(why)
    return RefusalModel(embedder, compute)
