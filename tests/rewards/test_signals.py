import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from flywheel_tasks.chat.card import Card
from flywheel_tasks.rewards import signals
from flywheel_tasks.rewards.embedding import Embedder
from flywheel_tasks.storage.tables import write_rows

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
SPLIT = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "user_id", "reply")]
    + [("history", pa.list_(TURN)), ("signals", pa.list_(pa.string()))]
)
CARD = Card("c1", "Mira", (), ())
WARM = ("what a lovely thought", "i love that story", "tell me more my friend", "that makes me smile")
COLD = ("no", "ask someone else", "stop talking now", "error four zero four")


def split_rows(count: int, name: str) -> list[dict[str, Any]]:
    """Warm replies get ``continue`` and cold ones ``thumb_down``; a fifth has no reply."""
    random_ = random.Random(name)
    rows = []
    for number in range(count):
        warm = random_.random() < 0.5
        rows.append(
            {
                "prompt_id": f"{name}-{number}",
                "user_id": f"{name}-user-{number // 3}",
                "history": [{"role": "user", "content": f"hello number {number}"}],
                "reply": random_.choice(WARM if warm else COLD) + f" {number}" if number % 5 else None,
                "signals": ["continue"] if warm else ["thumb_down"],
            }
        )
    return rows


@pytest.fixture
def signal_io(make_io: Callable[..., Any], tiny_models: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(train: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> Any:
        io = make_io("train_signal_models", tmp_path, {"compute.threads": 1, "signal_models.l2": 0.01})
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / "embedder").symlink_to(tiny_models / "embedder")
        (tmp_path / "data" / "split").mkdir(parents=True)
        write_rows(train, SPLIT, tmp_path / "data" / "split" / "reward_train.parquet")
        write_rows(heldout, SPLIT, tmp_path / "data" / "split" / "reward_heldout.parquet")
        return io

    return make


def test_heads_that_say_something_else_than_when_they_were_saved_are_refused(
    signal_io: Callable[..., Any],
) -> None:
    io = signal_io(split_rows(60, "train"), split_rows(30, "heldout"))
    signals.run(io)
    folder, embedder = io.out("models/signal_models"), io.dep("models/embedder")
    signals.SignalScorer(folder, embedder)
    weights = load_file(folder / "heads.safetensors")
    weights["continue.intercept"] = weights["continue.intercept"] + 0.5
    save_file(weights, folder / "heads.safetensors")
    with pytest.raises(signals.SignalError, match="when they were saved"):
        signals.SignalScorer(folder, embedder)


def test_a_head_is_where_the_loss_of_plain_torch_is_lowest() -> None:
    """Binary cross-entropy, summed, plus l2/2 of the squared weights; the intercept is free."""
    random_ = np.random.default_rng(0)
    features = random_.normal(size=(60, 5))
    positive = features[:, 0] + random_.normal(size=60) > 0.7
    head = signals.fit_head(features, positive, 0.5)
    assert head is not None
    x, y = torch.tensor(features), torch.tensor(positive, dtype=torch.float64)

    def loss(weights: torch.Tensor, intercept: torch.Tensor) -> torch.Tensor:
        logits = x @ weights + intercept
        return binary_cross_entropy_with_logits(logits, y, reduction="sum") + 0.25 * (weights**2).sum()

    found = (
        torch.tensor(head.weights, requires_grad=True),
        torch.tensor(head.intercept, dtype=torch.float64, requires_grad=True),
    )
    for slope in torch.autograd.grad(loss(*found), found):
        assert float(slope.abs().max()) < 1e-2, "no direction leads further down (the loss is convex)"
    nothing = torch.zeros(5, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    assert float(loss(*found)) < float(loss(*nothing)) - 1
    expected = torch.sigmoid(x @ found[0] + found[1]).detach().numpy()
    assert head.probabilities(features) == pytest.approx(expected, abs=1e-9)


def test_signals_are_learned_measured_and_scored(signal_io: Callable[..., Any]) -> None:
    train, heldout = split_rows(60, "train"), split_rows(45, "heldout")
    io = signal_io(train, heldout)
    metrics = signals.run(io)
    assert metrics["train"] == {"replies": 48, "users": 20}
    found = metrics["signals"]
    assert found["continue"]["auc"]["low"] > 0.5
    brier, of_share, gain = (found["continue"][key] for key in ("brier", "brier_of_share", "brier_gain"))
    assert brier["value"] < of_share["value"]
    assert gain["value"] == pytest.approx(of_share["value"] - brier["value"])
    assert gain["low"] > 0, "the same rows on both sides: the difference is surer than either"
    assert gain["clusters"] == len({row["user_id"] for row in heldout})
    answered = [row for row in heldout if row["reply"] is not None]
    assert found["continue"]["heldout_positive"] == sum("continue" in row["signals"] for row in answered)
    assert found["love"] == {
        "trained": 0,
        "train_positive": 0,
        "heldout_positive": 0,
        "auc": None,
        "brier": None,
        "brier_of_share": None,
        "brier_gain": None,
    }

    scorer = signals.SignalScorer(io.out("models/signal_models"), io.dep("models/embedder"))
    assert set(scorer.untrained) == {"thumb_up", "love", "regenerate", "feedback"}
    rows = [(CARD, row["history"], row["reply"]) for row in answered]
    p = scorer.probabilities(rows)
    assert p["love"] == [None] * len(rows)
    positive = [("continue" in row["signals"]) for row in answered]
    assert roc_auc_score(positive, p["continue"]) == pytest.approx(found["continue"]["auc"]["value"])
    assert all(0 < value < 1 for value in p["continue"])
    assert scorer.probabilities([])["continue"] == []


def test_no_pickle_is_written(signal_io: Callable[..., Any]) -> None:
    io = signal_io(split_rows(20, "train"), split_rows(20, "heldout"))
    signals.run(io)
    names = sorted(path.name for path in io.out("models/signal_models").iterdir())
    assert names == ["heads.safetensors", "signals.json"]


def test_no_logged_reply_trains_nothing_and_says_so(signal_io: Callable[..., Any]) -> None:
    io = signal_io([], [])
    metrics = signals.run(io)
    assert [found["trained"] for found in metrics["signals"].values()] == [0] * 6
    scorer = signals.SignalScorer(io.out("models/signal_models"), io.dep("models/embedder"))
    history = [{"role": "user", "content": "hi"}]
    assert scorer.probabilities([(CARD, history, "hello")])["continue"] == [None]


def test_another_embedder_is_refused(signal_io: Callable[..., Any], tmp_path: Path) -> None:
    io = signal_io(split_rows(20, "train"), split_rows(20, "heldout"))
    signals.run(io)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(signals.SignalError, match="was trained on the embedder"):
        signals.SignalScorer(io.out("models/signal_models"), tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signals": ["clap"]}, "row 3 .*unknown signal clap"),
        ({"history": []}, "row 3 .*history does not end"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = split_rows(6, "train")
    rows[3].update(change)
    write_rows(rows, SPLIT, tmp_path / "reward_train.parquet")
    with pytest.raises(signals.SignalError, match=message):
        signals.load_logged(tmp_path / "reward_train.parquet")


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    value = signals.auc(scores, positive)
    if len(set(positive.tolist())) < 2:
        assert value is None
    else:
        assert value == pytest.approx(roc_auc_score(positive, scores))


def test_auc_interval_counts_users_not_replies() -> None:
    """Twenty replies of each of five users tell hardly more than one reply of each."""
    rng = np.random.default_rng(0)
    of_user = rng.normal(size=10)
    scores, positive = np.repeat(of_user, 20), np.repeat(np.arange(10) % 2 == 0, 20)
    alone = signals.auc_interval(scores, positive, [str(k) for k in range(200)], seed=1)
    clustered = signals.auc_interval(scores, positive, [str(k // 20) for k in range(200)], seed=1)
    assert clustered["value"] == alone["value"]
    assert clustered["high"] - clustered["low"] > 2 * (alone["high"] - alone["low"])  # type: ignore[operator]


def test_the_users_of_an_auc_are_gone_through_once() -> None:
    compared = 0

    class User(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    users = [User(k // 2) for k in range(400)]
    signals.auc_interval(np.zeros(400), np.zeros(400, dtype=bool), users, seed=1)
    assert compared < 10 * len(users)


def test_features_are_of_the_turn_the_reply_and_their_product(tiny_models: Path) -> None:
    embedder = Embedder(tiny_models / "embedder")
    both = embedder.features([("hello", "good day"), ("good day", "hello")])
    size = both.shape[1] // 3
    assert np.allclose(both[0, :size], both[1, size : 2 * size], atol=1e-6)
    assert np.allclose(both[:, 2 * size :], both[:, :size] * both[:, size : 2 * size])
    assert np.allclose(np.linalg.norm(both[:, :size], axis=1), 1.0, atol=1e-5)


def test_one_user_with_a_signal_is_no_certainty() -> None:
    """Resampled, the only positive would give 1.00 to 1.00."""
    scores = np.linspace(0, 1, 26)
    positive = scores == 1
    users = [str(k) for k in range(26)]
    found = signals.auc_interval(scores, positive, users, seed=1)
    assert (found["value"], found["low"], found["high"]) == (1.0, None, None)
    positive = scores > 0.8
    assert signals.auc_interval(scores, positive, users, seed=1)["low"] is not None
