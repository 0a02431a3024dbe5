"""A reward model against the last launched generation's, on the same pairs."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_tasks.curation.split import split_of
from flywheel_tasks.evaluation.gate_rules import FILE, load_rules
from flywheel_tasks.evaluation.rules import apply
from flywheel_tasks.rewards.agreement import by_set
from flywheel_tasks.rewards.earlier import PIN, EarlierModelError, against_earlier, gains, start_of
from flywheel_tasks.rewards.pairs import Pair, parse_pairs
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.documents import read_json, write_json
from tests.conftest import PROJECT
from tests.rewards.conftest import planted_rows

SHARES = {
    "reward_train": 0.5,
    "reward_heldout": 0.5,
    "policy_train": 0.0,
    "policy_heldout": 0.0,
    "evaluation": 0.0,
}


def heldout(prompts: int) -> list[Pair]:
    return parse_pairs(planted_rows(prompts, "reward_heldout"), Path("pairs.parquet"))["reward_heldout"]


def margins(right: Sequence[bool]) -> list[float]:
    return [1.0 if one else -1.0 for one in right]


def test_a_better_model_gains_on_the_same_pairs_and_an_equal_one_does_not() -> None:
    pairs = heldout(120)
    random = np.random.default_rng(0)
    better, worse = random.random(len(pairs)) < 0.9, random.random(len(pairs)) < 0.6
    found = gains(margins(better), margins(worse), pairs)
    assert found["accuracy_gain"]["value"] == pytest.approx(better.mean() - worse.mean())
    assert found["accuracy"]["value"] == pytest.approx(worse.mean())
    assert (
        0 < found["accuracy_gain"]["low"] < found["accuracy_gain"]["value"] < found["accuracy_gain"]["high"]
    )
    assert found["brier_gain"]["low"] > 0
    assert found["only_this_right"] == int((better & ~worse).sum())
    assert found["only_earlier_right"] == int((worse & ~better).sum())
    same = gains(margins(worse), margins(worse), pairs)
    assert same["accuracy_gain"]["value"] == 0
    assert same["accuracy_gain"]["low"] < 0 < same["accuracy_gain"]["high"]


def test_a_model_that_is_wrong_on_four_more_pairs_of_four_users_is_not_surely_worse() -> None:
    pairs = [replace(pair, user_id=f"u{place // 4}") for place, pair in enumerate(heldout(60)[:120])]
    right = np.ones(len(pairs), dtype=bool)
    for users, surely in ((4, False), (8, True)):
        worse = right.copy()
        worse[: 4 * users : 4] = False
        gain = gains(margins(worse), margins(right), pairs)["accuracy_gain"]
        assert gain["value"] < 0
        assert (gain["high"] < 0) == surely


def test_pairs_of_one_user_have_no_interval_and_do_not_block_a_launch() -> None:
    found = gains([1.0, 1.0], [1.0, -1.0], [replace(pair, user_id="u") for pair in heldout(2)[:2]])
    assert (found["accuracy_gain"]["value"], found["accuracy_gain"]["high"]) == (0.5, None)
    (rule,) = [r for r in load_rules(PROJECT / FILE).rules if r.metric.endswith("accuracy_gain.high")]
    reason = apply(rule, {"train_pointwise_rm": {"earlier": found}})
    assert reason.outcome == "pass"
    assert reason.reason.endswith("was not measured: pairs of one user have no interval.")


def test_pairing_tells_what_two_separate_intervals_do_not() -> None:
    """Both models fail on the same hard pairs; the better one is right on a few more. Apart, the intervals overlap."""
    pairs = heldout(100)
    worse = np.arange(len(pairs)) % 2 == 0
    better = worse | (np.arange(len(pairs)) % 13 == 1)
    found = gains(margins(better), margins(worse), pairs)
    alone = gains(margins(better), margins(better), pairs)
    assert found["accuracy"]["high"] > alone["accuracy"]["low"]
    assert found["accuracy_gain"]["low"] > 0


def test_the_consensus_and_one_review_are_measured_apart() -> None:
    pairs = heldout(48)
    found = by_set(pairs, margins([True] * len(pairs)))
    assert (found["consensus"]["pairs"], found["consensus"]["accuracy"]["value"]) == (48, 1.0)
    # One review in six of the ranked pairs prefers the other reply: a perfect model is wrong there.
    assert found["single_review"]["pairs"] == 48
    assert found["single_review"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert found["single_review"]["brier"]["value"] > found["consensus"]["brier"]["value"]


def test_a_review_that_leaves_both_equal_has_no_answer_and_is_counted() -> None:
    rows = planted_rows(6, "reward_heldout")
    for row in rows[:4:2]:
        row["one_review"] = 0.5
    pairs = parse_pairs(rows, Path("pairs.parquet"))["reward_heldout"]
    found = by_set(pairs, margins([True] * len(pairs)))["single_review"]
    assert (found["pairs"], found["ties"]) == (4, 2)


@pytest.fixture
def pinned_io(reward_io: Callable[..., Any]) -> Callable[..., Any]:
    """``pinned_io(salt)``: the pointwise stage with an earlier model that is a folder with one file."""

    def make(salt: str | None, digest: str | None = None) -> Any:
        io = reward_io("train_pointwise_rm")
        folder = io.root / "inputs/earlier_pointwise_rm"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        model = {"path": "inputs/earlier_pointwise_rm", "digest": digest or tree_digest(folder)}
        split = None if salt is None else {"salt": salt, "shares": SHARES}
        document = {"generation": "g0007", "models": {"pointwise": model}, "split": split, "reason": "none"}
        write_json(document, io.root / PIN)
        return io

    return make


def scored(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    assert (folder / "model.safetensors").exists()
    return [-1.0] * len(pairs)


def test_users_that_the_earlier_model_was_trained_on_are_left_out(pinned_io: Callable[..., Any]) -> None:
    pairs = heldout(48)
    known = {pair.user_id for pair in pairs if split_of(pair.user_id, "old", SHARES) == "reward_train"}
    assert 0 < len(known) < 12
    found = against_earlier(pinned_io("old"), "pointwise", pairs, margins([True] * len(pairs)), scored)
    assert found["generation"] == "g0007"
    assert found["left_out_trained_on"] == sum(pair.user_id in known for pair in pairs)
    assert found["pairs"] + found["left_out_trained_on"] == len(pairs)
    assert (found["accuracy"]["value"], found["accuracy_gain"]["value"]) == (0.0, 1.0)


def test_other_files_than_were_pinned_stop_the_stage(pinned_io: Callable[..., Any]) -> None:
    io = pinned_io(None, digest="sha256:" + "0" * 64)
    with pytest.raises(EarlierModelError, match=r"earlier_pointwise_rm is sha256:.*, pinned is sha256:0000"):
        against_earlier(io, "pointwise", heldout(2), [1.0] * 4, scored)


def test_without_an_earlier_model_the_metrics_say_so(reward_io: Callable[..., Any]) -> None:
    first = against_earlier(reward_io("train_pointwise_rm"), "pointwise", heldout(2), [1.0] * 4, scored)
    assert first["generation"] is None
    assert first["accuracy_gain"]["value"] is None
    assert first["accuracy_gain"]["reason"] == "no earlier model: no generation was launched before"


@pytest.fixture
def placed(reward_io: Callable[..., Any], tiny_models: Path) -> Any:
    """The pointwise stage with an earlier model of the same split, which is the tiny policy itself."""
    io = reward_io("train_pointwise_rm")
    folder = io.root / "inputs/earlier_pointwise_rm"
    shutil.copytree(tiny_models / "base", folder)
    split = {"salt": io.settings.split.salt, "shares": dict(io.settings.split.shares)}
    model = {"path": "inputs/earlier_pointwise_rm", "digest": tree_digest(folder)}
    document = {"generation": "g0007", "models": {"pointwise": model}, "split": split, "reason": "none"}
    write_json(document, io.root / PIN)
    return io


def test_training_starts_from_the_earlier_model_if_it_is_wanted(placed: Any) -> None:
    found = start_of(placed, "pointwise", "earlier")
    assert found.folder == placed.root / "inputs/earlier_pointwise_rm"
    assert found.account == {"generation": "g0007", "reason": None}
    base = start_of(placed, "pointwise", "base")
    assert (base.folder, base.account["generation"]) == (placed.root / "models/base", None)


def test_it_starts_from_the_first_policy_where_the_earlier_model_cannot_be_gone_on_with(placed: Any) -> None:
    pinned = read_json(placed.root / PIN)
    other_rule = {**pinned, "split": {**pinned["split"], "salt": "another"}}
    for document, reason in (
        (other_rule, "g0007 split users by another rule"),
        ({**pinned, "split": None}, "g0007 split users by another rule"),
        ({**pinned, "models": {}, "reason": "lost"}, "lost"),
    ):
        write_json(document, placed.root / PIN)
        found = start_of(placed, "pointwise", "earlier")
        assert (found.folder, found.account["reason"]) == (placed.root / "models/base", reason)


def test_a_model_of_another_architecture_is_not_gone_on_with(placed: Any) -> None:
    path = placed.root / "inputs/earlier_pointwise_rm/config.json"
    write_json({**read_json(path), "hidden_size": 8}, path)
    pinned = read_json(placed.root / PIN)
    pinned["models"]["pointwise"]["digest"] = tree_digest(path.parent)
    write_json(pinned, placed.root / PIN)
    assert "another architecture" in start_of(placed, "pointwise", "earlier").account["reason"]


def test_other_files_than_were_pinned_are_not_started_from(placed: Any) -> None:
    (placed.root / "inputs/earlier_pointwise_rm/config.json").write_bytes(b"{}")
    with pytest.raises(EarlierModelError, match="pinned is sha256:"):
        start_of(placed, "pointwise", "earlier")
    start_of(placed, "pointwise", "base")


def test_nobody_goes_on_from_a_model_that_learned_from_a_forgotten_user(placed: Any) -> None:
    write_json({**read_json(placed.root / PIN), "knows_forgotten": True}, placed.root / PIN)
    found = start_of(placed, "pointwise", "earlier")
    assert found.folder == placed.root / "models/base"
    assert "asked to be forgotten" in found.account["reason"]
