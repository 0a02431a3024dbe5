"""What makes scoring fast: each prompt and each reply is read once, and rows of like length stand in a batch."""

import random
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.rewards import scoring
from flywheel_tasks.rewards.encoding import encode_replies
from flywheel_tasks.rewards.packing import Group
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.settings import Compute
from tests.policy.conftest import save_reward_model

CARD = Card("c1", "Mira", ("calm",), ())
REPLIES = ["moon", "moon river", "moon river lamp lamp", "moon river garden lamp lamp lamp lamp"]


def prompt(number: int) -> tuple[Turn, ...]:
    """Every second one is longer by as many tokens."""
    return (Turn(role="user", content=f"{number}" + " moon" * (60 if number % 2 else 1)),)


@pytest.fixture
def scorer(tiny_models: Path, tmp_path: Path) -> PointwiseScorer:
    save_reward_model(tiny_models / "base", tmp_path / "rm")
    return PointwiseScorer(tmp_path / "rm", compute=Compute(precision="float32", threads=1))


def test_each_prompt_and_each_reply_to_it_is_read_once_beside_rows_of_its_length(
    scorer: PointwiseScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(number, reply) for number in range(8) for reply in REPLIES]
    asked += asked[::5]  # repeats
    random.Random(0).shuffle(asked)
    tokens = []
    for number in range(8):
        ids, replies = encode_replies(scorer._tokenizer, CARD, prompt(number), REPLIES, scorer._limits)
        tokens.append(len(ids) + sum(map(len, replies)))
    short, long = tokens[0], tokens[1]
    assert tokens == [short, long] * 4
    assert 4 * short <= 2 * long
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 2 * long)
    shapes: list[tuple[int, ...]] = []

    def counted(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        shapes.append(tuple(inputs["input_ids"].shape))

    hook = scorer._model.register_forward_pre_hook(counted, with_kwargs=True)
    scores = scorer.score([(CARD, prompt(number), reply) for number, reply in asked])
    hook.remove()
    assert shapes == [(2, long), (2, long), (4, short)], "no token twice, and none of padding"
    found = dict(zip(asked, scores, strict=True))
    assert len(set(found.values())) == len(found) == 32
    assert [found[one] for one in asked] == scores


def test_batches_go_from_the_longest_row_down_and_hold_as_many_as_fit_with_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 100)
    groups = [Group([1] * (length - 1), [[1]]) for length in (10, 50, 30, 20, 50, 10, 40, 12, 120)]
    assert list(scoring._batches(groups)) == [[8], [1, 4], [6, 2], [3, 7, 0, 5]]
    assert list(scoring._batches([])) == []
