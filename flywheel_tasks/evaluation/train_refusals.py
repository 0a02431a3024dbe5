"""Trains the refusal detector: ``python -m flywheel_tasks.evaluation.train_refusals``.

It learns from ``refusal_lines.txt`` and ``ordinary_replies.txt``. Two logistic regressions, on the embedder's states
and on n-grams, are fitted on all lines; a third weighs their log odds and the rules', on what regressions that were
fitted without a line's request said about it. Takes about a minute.
"""

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flywheel_tasks.evaluation import refusals
from flywheel_tasks.evaluation.labelled_lines import WRITTEN, Line, read_lines, text_of
from flywheel_tasks.evaluation.refusal_model import FILE, Reader, log_odds

ORDINARY = "ordinary_replies.txt"  # of the demo's base model
_PARTS = 5  # of the requests, each judged by what the others taught
_STATES_C, _GRAMS_C = 1e-3, 30.0
# Among replies of a chat model a refusal is rarer than among the lines: the odds are shifted to such a share.
_SHARE = 0.15


def _fitted(features: Any, labels: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=500).fit(features, labels)


def _unseen_odds(features: Any, lines: Sequence[Line], labels: np.ndarray, strength: float) -> np.ndarray:
    """Log odds of each line by a regression that saw no line of its request."""
    parts = np.array([line.request % _PARTS for line in lines])
    odds = np.zeros(len(lines))
    for part in range(_PARTS):
        rest = parts != part
        odds[~rest] = _fitted(features[rest], labels[rest], strength).decision_function(features[~rest])
    return odds


def trained(lines: Sequence[Line], reader: Reader) -> tuple[dict[str, np.ndarray], float]:
    """The weights, and how many of the lines they get right without having seen their request.

    Args:
        lines: labelled, of at least five requests, with both labels.
        reader: of the embedder.
    """
    rows = [(line.said, line.reply) for line in lines]
    labels = np.array([line.refuses for line in lines])
    states = reader.states(rows).astype(np.float64)
    middle, spread = states.mean(0), states.std(0) + 1e-3
    scaled, grams = (states - middle) / spread, reader.grams(rows)
    evidence = np.column_stack(
        [
            _unseen_odds(scaled, lines, labels, _STATES_C),
            _unseen_odds(grams, lines, labels, _GRAMS_C),
            [log_odds(refusals.probability(line.reply)) for line in lines],
        ]
    )
    mix = _fitted(evidence, labels, 1.0)
    here = labels.mean()
    shift = np.log(_SHARE / (1 - _SHARE)) - np.log(here / (1 - here))
    by_states, by_grams = _fitted(scaled, labels, _STATES_C), _fitted(grams, labels, _GRAMS_C)
    slopes = by_states.coef_[0] / spread
    return {
        "states": np.append(slopes, by_states.intercept_[0] - slopes @ middle).astype(np.float32),
        "grams": np.append(by_grams.coef_[0], by_grams.intercept_[0]).astype(np.float16),
        "mix": np.append(mix.intercept_[0] + shift, mix.coef_[0]).astype(np.float32),
    }, float(mix.score(evidence, labels))


def main(
    embedder: Annotated[Path, typer.Option(help="Sentence-transformers folder.")] = Path("models/embedder"),
    lines: Annotated[Path | None, typer.Option(help="Labelled lines; the project's own by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Weights; the installed ones by default.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train, weigh against the rules, and write the weights."""
    from safetensors.numpy import save_file

    from flywheel_tasks.storage.atomic import atomic_path
    from flywheel_tasks.storage.digests import tree_digest

    text = lines.read_text(encoding="utf-8") if lines else text_of(WRITTEN, ORDINARY)
    labelled = read_lines(text)
    weights, right = trained(labelled, Reader(embedder, threads))
    typer.echo(
        f"{right:.3f} of {len(labelled)} lines right, unseen; bias, states, n-grams, rules: {weights['mix']}"
    )
    about = {"embedder": tree_digest(embedder), "lines": sha256(text.encode()).hexdigest()}
    with atomic_path(out or Path(str(files("flywheel_tasks.evaluation").joinpath(FILE)))) as temporary:
        save_file(weights, temporary, metadata=about)


if __name__ == "__main__":
    typer.run(main)
