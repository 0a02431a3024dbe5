"""Stage ``train_signal_models``: p(signal) of a reply, one logistic regression for each signal users give.

Those in ``used`` of the settings may select data; the others are trained and reported. By default no policy is
optimised against them: in the paper that failed (arXiv 2603.01973, section on user-signal models). Only
``rl.auxiliary`` adds p(continue) or p(thumb up) to the reward, up to a bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from scipy.stats import rankdata

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.intervals import mean
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.embedding import Embedder
from flywheel_tasks.settings import SIGNALS
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.training.precision import set_threads

_RESAMPLES = 1000
_LEAST_USERS = 5  # with a reply of each class, for an interval
_TOLERANCE = 1e-3  # of a probability, between two processes
_PROBE = ("What have you been up to today?", "Mending nets since dawn. Shall I tell you more?")


class SignalError(ValueError):
    """The split tables or a folder of signal models break a rule; the message says where and which."""


@dataclass(frozen=True)
class Logged:
    """Logged replies of one split.

    Attributes:
        rows: (user's last turn, reply).
        users: whose conversation each is.
        signals: what the user gave to each reply; may be empty.
    """

    rows: list[tuple[str, str]]
    users: list[str]
    signals: list[frozenset[str]]

    def positive(self, signal: str) -> np.ndarray:
        """Which replies [N] got a signal."""
        return np.array([signal in given for given in self.signals], dtype=bool)


def load_logged(path: Path) -> Logged:
    """The prompts of a split that have a logged reply.

    Args:
        path: one of ``data/split/*.parquet``.

    Raises:
        SignalError: a row has an unknown signal, or a history that does not end with a user's turn.
    """
    found = Logged([], [], [])
    for number, row in enumerate(read_rows(path)):
        if row["reply"] is None:
            continue
        where = f"{path}: row {number} (prompt {row['prompt_id']})"
        signals = frozenset(row["signals"] or ())
        if unknown := signals - set(SIGNALS):
            raise SignalError(f"{where}: unknown signal {', '.join(sorted(unknown))}")
        history = row["history"] or ()
        if not history or history[-1]["role"] != "user":
            raise SignalError(f"{where}: history does not end with a user's turn")
        found.rows.append((history[-1]["content"], row["reply"]))
        found.users.append(row["user_id"])
        found.signals.append(signals)
    return found


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """P(a positive scores higher than a negative), ties one half; None without both classes."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def auc_interval(
    scores: np.ndarray, positive: np.ndarray, users: Sequence[str], seed: int
) -> dict[str, float | int | None]:
    """AUC with a 95% percentile bootstrap interval; whole users are drawn, because their replies are alike.

    Args:
        scores: [N] higher is more likely.
        positive: [N] booleans.
        users: whose reply each row is.
        seed: of the resampling.

    Returns:
        value, low, high, n; the numbers are None without both classes. The bounds are None where fewer than five users
        have a reply of one of the classes: drawn again and again, these few would look like certainty.
    """
    value = auc(scores, positive)
    unique = sorted(set(users))
    rows_of: dict[str, list[int]] = {user: [] for user in unique}
    for row, user in enumerate(users):
        rows_of[user].append(row)
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    of_class = [
        {user for user, is_so in zip(users, positive, strict=True) if is_so == one} for one in (True, False)
    ]
    enough = min(map(len, of_class)) >= _LEAST_USERS
    for _ in range(_RESAMPLES if enough else 0):
        chosen = [row for k in rng.integers(len(unique), size=len(unique)) for row in rows_of[unique[k]]]
        if (drawn := auc(scores[chosen], positive[chosen])) is not None:
            draws.append(drawn)
    low, high = np.quantile(draws, [0.025, 0.975]) if draws else (None, None)
    return {
        "value": value,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": len(scores),
    }


@dataclass(frozen=True)
class Head:
    """One logistic regression: p(signal) = sigmoid(weights . features + intercept)."""

    weights: np.ndarray
    intercept: float

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """p(signal) [N] of features [N, D]."""
        return expit(features @ self.weights + self.intercept)


def fit_head(features: np.ndarray, positive: np.ndarray, l2: float) -> Head | None:
    """Fit one head; None where all replies are of one class.

    The classes are not reweighted, so that the mean of p is the share of replies that got the signal and a
    threshold on p means what it says.

    Args:
        features: [N, D].
        positive: [N] booleans.
        l2: strength of the penalty on the weights.
    """
    if len(set(positive.tolist())) < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0 / l2, max_iter=1000).fit(features, positive)
    return Head(model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def save_heads(
    heads: Mapping[str, Head | None], embedder: Path, folder: Path, probe: np.ndarray | None = None
) -> None:
    """Write ``heads.safetensors`` and ``signals.json`` (which signals are trained, on which embedder).

    Args:
        heads: by signal.
        embedder: its folder.
        folder: to write.
        probe: features [1, D] of a fixed exchange; what the heads say of it is kept, for :class:`SignalScorer` to check
            in the process that loads them.
    """
    folder.mkdir(parents=True)
    tensors: dict[str, np.ndarray] = {}
    for signal, head in sorted(heads.items()):
        if head is not None:
            tensors[f"{signal}.weights"] = head.weights
            tensors[f"{signal}.intercept"] = np.array([head.intercept])
    save_file(tensors, folder / "heads.safetensors")
    trained = {signal: head is not None for signal, head in heads.items()}
    about: dict[str, Any] = {"trained": trained, "embedder": tree_digest(embedder)}
    if probe is not None:
        about["probe"] = _said(heads, probe)
    write_json(about, folder / "signals.json")


def _said(heads: Mapping[str, Head | None], probe: np.ndarray) -> dict[str, float]:
    return {
        signal: float(head.probabilities(probe)[0])
        for signal, head in sorted(heads.items())
        if head is not None
    }


def _check(found: Mapping[str, float], kept: Mapping[str, float], folder: Path) -> None:
    """Stop where heads do not say what they said when they were saved."""
    same = found.keys() == kept.keys() and all(abs(found[name] - kept[name]) <= _TOLERANCE for name in kept)
    if not same:
        raise SignalError(
            f"{folder}: the heads say {found} of the probe, and said {kept} when they were saved"
        )


def load_heads(folder: Path, embedder: Path) -> dict[str, Head | None]:
    """Read what :func:`save_heads` wrote.

    Raises:
        SignalError: the heads were trained on another embedder, or weights are missing or not finite.
    """
    about = read_json(folder / "signals.json")
    if (found := tree_digest(embedder)) != about["embedder"]:
        raise SignalError(f"{folder}: was trained on the embedder {about['embedder']}, {embedder} is {found}")
    tensors = load_file(folder / "heads.safetensors")
    heads: dict[str, Head | None] = {}
    for signal, trained in sorted(about["trained"].items()):
        heads[signal] = None
        if trained:
            weights, intercept = tensors[f"{signal}.weights"], tensors[f"{signal}.intercept"]
            if not (np.isfinite(weights).all() and np.isfinite(intercept).all()):
                raise SignalError(f"{folder}: the weights of {signal} are not finite")
            heads[signal] = Head(weights, float(intercept[0]))
    return heads


class SignalScorer:
    """p(signal) of replies.

    Args:
        model_dir: folder of the stage ``train_signal_models``.
        embedder_dir: the embedder that it was trained on.

    Raises:
        SignalError: see :func:`load_heads`; or the heads do not answer as when they were saved.
    """

    def __init__(self, model_dir: Path, embedder_dir: Path) -> None:
        self._heads = load_heads(model_dir, embedder_dir)
        self._embedder = Embedder(embedder_dir)
        kept = read_json(model_dir / "signals.json").get("probe")
        if kept is not None:
            _check(_said(self._heads, self._embedder.features([_PROBE])), kept, model_dir)

    @property
    def untrained(self) -> tuple[str, ...]:
        """Signals that had one class only in training and have no model."""
        return tuple(signal for signal, head in self._heads.items() if head is None)

    def probabilities(
        self, rows: Sequence[tuple[Card, Sequence[Turn], str]]
    ) -> dict[str, list[float | None]]:
        """p(signal) of each reply, in the rows' order.

        Args:
            rows: (card, history ending with a user's turn, reply).

        Returns:
            for each signal its probabilities; None in every row for a signal that could not be trained. Who
            filters by it must let such rows pass and say so, since there is nothing to filter by.
        """
        features = self._embedder.features([(history[-1]["content"], reply) for _, history, reply in rows])
        return {
            signal: [None] * len(rows) if head is None else head.probabilities(features).tolist()
            for signal, head in self._heads.items()
        }


def _measure(
    head: Head | None, train: np.ndarray, features: np.ndarray, heldout: Logged, signal: str, seed: int
) -> dict[str, Any]:
    """Metrics of one signal: counts, AUC, and Brier scores of the model and of the training share as a guess.

    ``brier_gain`` is how far the first is below the second; all three have an interval clustered by user.
    """
    positive = heldout.positive(signal)
    counts = {
        "trained": int(head is not None),
        "train_positive": int(train.sum()),
        "heldout_positive": int(positive.sum()),
    }
    if head is None or not len(positive):
        return counts | {"auc": None, "brier": None, "brier_of_share": None, "brier_gain": None}
    p = head.probabilities(features)
    errors, of_share = (p - positive) ** 2, (train.mean() - positive) ** 2
    return counts | {
        "auc": auc_interval(p, positive, heldout.users, seed),
        "brier": mean(errors.tolist(), heldout.users),
        "brier_of_share": mean(of_share.tolist(), heldout.users),
        "brier_gain": mean((of_share - errors).tolist(), heldout.users),
    }


def run(io: StageIO) -> Mapping[str, Any]:
    """Train on logged replies of the ``reward_train`` split, measure on ``reward_heldout``.

    Policy prompts are left out: their replies are what the models will select among.
    """
    settings = io.settings.signal_models
    set_threads(io.settings.compute)
    embedder_dir = io.dep("models/embedder")
    train = load_logged(io.dep("data/split/reward_train.parquet"))
    heldout = load_logged(io.dep("data/split/reward_heldout.parquet"))
    embedder = Embedder(embedder_dir)
    train_features, heldout_features = embedder.features(train.rows), embedder.features(heldout.rows)
    heads: dict[str, Head | None] = {
        signal: fit_head(train_features, train.positive(signal), settings.l2)
        for signal in sorted(settings.signals)
    }
    save_heads(heads, embedder_dir, io.out("models/signal_models"), embedder.features([_PROBE]))
    return {
        "train": {"replies": len(train.rows), "users": len(set(train.users))},
        "heldout": {"replies": len(heldout.rows), "users": len(set(heldout.users))},
        "signals": {
            signal: _measure(
                head, train.positive(signal), heldout_features, heldout, signal, io.settings.seed
            )
            for signal, head in heads.items()
        },
    }
