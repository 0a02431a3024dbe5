"""Which pairs of earlier generations are learned from, and that every one is accounted for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_tasks.curation.split import split_of
from flywheel_tasks.pipeline import earlier_pairs as pins
from flywheel_tasks.rewards import pairwise, pointwise
from flywheel_tasks.rewards.earlier_pairs import earlier_pairs
from flywheel_tasks.rewards.pairs import PairError, load_pairs
from flywheel_tasks.settings import EarlierPairs
from flywheel_tasks.storage.documents import write_json
from tests.rewards.conftest import planted_rows, write_pairs

ALL_TRAIN = {
    "reward_train": 1.0,
    "reward_heldout": 0.0,
    "policy_train": 0.0,
    "policy_heldout": 0.0,
    "evaluation": 0.0,
}


def earlier(root: Path, generation: str, prompts: int, lost: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """Pairs of a launched generation, in place; ``lost`` more of them were of users who are forgotten."""
    rows = planted_rows(prompts, "reward_train", seed=int(generation[1:]))
    for row in rows:
        for key in ("pair_id", "prompt_id", "user_id"):
            row[key] = f"{generation}-{row[key]}"
        row |= changes
    write_pairs(rows, root / pins.FOLDER / f"{generation}.parquet")
    return [{"generation": generation, "source": "sha256:0", "pairs": len(rows) + lost, "reason": None}]


def chosen(io: Any, generations: int = 3, per_own: float = 9.0, room: int | None = None) -> Any:
    pairs = load_pairs(io.dep("data/preferences/pairs.parquet"))
    section = EarlierPairs(generations=generations, per_own=per_own)
    return earlier_pairs(io, section, pairs["reward_train"], pairs["reward_heldout"], room)


def balanced(account: dict[str, Any]) -> bool:
    return all(
        row["launched_with"] == sum(count for name, count in row.items() if name != "launched_with")
        for row in account.values()
    )


@pytest.fixture
def io(reward_io: Callable[..., Any]) -> Any:
    rows = planted_rows(8, "reward_train") + planted_rows(4, "reward_heldout")
    return reward_io("train_pointwise_rm", {"split.shares": ALL_TRAIN}, rows)


def index(io: Any, *generations: list[dict[str, Any]]) -> None:
    write_json({"generations": [row for rows in generations for row in rows]}, io.root / pins.INDEX)


def test_the_newest_come_first_until_there_are_enough_for_the_own_ones(io: Any) -> None:
    index(
        io, earlier(io.root, "g0003", 5), earlier(io.root, "g0002", 5, lost=3), earlier(io.root, "g0001", 5)
    )
    found = chosen(io, generations=2, per_own=1.0)  # 16 own pairs
    assert [pair.pair_id[:5] for pair in found.pairs] == ["g0003"] * 10 + ["g0002"] * 6
    assert len({pair.prompt_id for pair in found.pairs}) == 8, "whole prompts"
    assert found.account["g0002"] == {
        "launched_with": 13,
        "used": 6,
        "forgotten": 3,
        "other_split": 0,
        "repeated": 0,
        "over_limit": 4,
    }
    assert balanced(found.account)
    assert chosen(io, 2, 1.0) == found
    assert len(chosen(io, room=4).pairs) == 4
    assert chosen(io, room=-5).pairs == []
    assert chosen(io, generations=0).account == {}


def test_users_who_measure_or_evaluate_now_are_never_learned_from(
    io: Any, make_io: Callable[..., Any]
) -> None:
    """One earlier generation, under every split that its users could be in now."""
    shares = dict.fromkeys(ALL_TRAIN, 0.2)
    rows = planted_rows(8, "reward_train") + planted_rows(4, "reward_heldout")
    write_pairs(rows, io.root / "data/preferences/pairs.parquet")
    now = make_io("train_pointwise_rm", io.root, {"split.shares": shares})
    index(now, earlier(now.root, "g0001", 60))
    salt = now.settings.split.salt
    found = chosen(now)
    kept = {pair.user_id for pair in found.pairs}
    assert kept
    assert {split_of(user, salt, shares) for user in kept} == {"reward_train"}
    users = {f"g0001-reward_train-user-{n}" for n in range(15)}
    assert kept == {user for user in users if split_of(user, salt, shares) == "reward_train"}
    assert found.account["g0001"]["other_split"] == 8 * (len(users) - len(kept))
    assert balanced(found.account)


def test_a_user_of_the_held_out_pairs_is_left_out_whatever_the_split_says(io: Any) -> None:
    index(io, earlier(io.root, "g0001", 4, user_id="reward_heldout-user-0"))
    found = chosen(io)
    assert found.pairs == []
    assert found.account["g0001"]["other_split"] == 8


def test_a_pair_is_learned_once(io: Any) -> None:
    """A pair that this generation has too, and one that two earlier generations have."""
    rows = planted_rows(8, "reward_train")
    write_pairs(rows[:4], io.root / pins.FOLDER / "g0002.parquet")
    about = {"generation": "g0002", "source": "sha256:0", "pairs": 4, "reason": None}
    same = earlier(io.root, "g0001", 3)
    (io.root / pins.FOLDER / "g0000.parquet").write_bytes(
        (io.root / pins.FOLDER / "g0001.parquet").read_bytes()
    )
    index(io, [about], same, [same[0] | {"generation": "g0000"}])
    found = chosen(io)
    assert len(found.pairs) == len({pair.pair_id for pair in found.pairs}) == 6
    assert {name: row["repeated"] for name, row in found.account.items()} == {
        "g0002": 4,
        "g0001": 0,
        "g0000": 6,
    }
    assert balanced(found.account)


def test_a_lost_table_is_counted(io: Any) -> None:
    lost = {
        "generation": "g0001",
        "source": "sha256:0",
        "pairs": 7,
        "reason": "DVC has lost the pairs of g0001",
    }
    index(io, [lost])
    assert chosen(io).account == {"g0001": {"launched_with": 7, "used": 0, "lost": 7}}


def test_pairs_that_measured_then_are_refused(io: Any) -> None:
    index(io, earlier(io.root, "g0001", 2, purpose="reward_heldout"))
    with pytest.raises(
        PairError, match=r"g0001.parquet: pairs of purpose reward_heldout may not be trained on"
    ):
        chosen(io)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 6), max_size=4), st.floats(0, 2), st.one_of(st.none(), st.integers(0, 20)))
def test_the_books_balance(io: Any, prompts: list[int], per_own: float, room: int | None) -> None:
    index(io, *(earlier(io.root, f"g{9 - n:04d}", count, lost=n) for n, count in enumerate(prompts)))
    found = chosen(io, generations=3, per_own=per_own, room=room)
    assert len(found.account) == min(3, len(prompts))
    assert balanced(found.account)
    assert len(found.pairs) == sum(row["used"] for row in found.account.values())
    assert len(found.pairs) <= min(int(per_own * 16), 16 * 2 if room is None else room)


@pytest.mark.slow
def test_the_stages_learn_from_them_and_say_so(reward_io: Callable[..., Any], tmp_path: Path) -> None:
    """The steps are those of all pairs together, and the account is in the metrics."""
    rows = planted_rows(4, "reward_train") + planted_rows(12, "reward_heldout")
    small = {"learning_rate": 0.01, "epochs": 3.0, "earlier_pairs": {"generations": 2, "per_own": 12.0}}
    changes = {f"pointwise_rm.{key}": value for key, value in small.items()} | {"split.shares": ALL_TRAIN}
    io = reward_io("train_pointwise_rm", changes | {"compute.precision": "float32"}, rows, tmp_path / "more")
    index(io, earlier(io.root, "g0002", 24), earlier(io.root, "g0001", 20))
    metrics = pointwise.run(io)
    assert metrics["pairs"]["own"] == 8
    assert metrics["pairs"]["earlier"] == 88
    assert metrics["train"]["pairs"] + metrics["train"]["left_out_as_equal"] == 96
    assert metrics["train"]["steps"] == 3 * 96 / io.settings.pointwise_rm.batch_size
    assert metrics["pairs"]["by_generation"]["g0001"]["used"] == 40

    changes = {"pairwise_rm.max_pairs": 12, "pairwise_rm.learning_rate": 0.003, "split.shares": ALL_TRAIN}
    judge = reward_io(
        "train_pairwise_rm", changes | {"compute.precision": "float32"}, rows, tmp_path / "judge"
    )
    index(judge, earlier(judge.root, "g0002", 24))
    pairs = pairwise.run(judge)["pairs"]
    assert (pairs["own"], pairs["earlier"]) == (8, 4), "max_pairs counts all, the own ones first"
