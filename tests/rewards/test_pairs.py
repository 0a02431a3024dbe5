from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.rewards.pairs import PairError, load_pairs, parse_pairs, require
from tests.rewards.conftest import planted_rows, write_pairs


def test_pairs_by_purpose_sorted(tmp_path: Path) -> None:
    rows = planted_rows(3, "reward_train") + planted_rows(2, "reward_heldout") + planted_rows(1, "policy")
    write_pairs(rows[::-1], tmp_path / "pairs.parquet")
    found = load_pairs(tmp_path / "pairs.parquet")
    assert {purpose: len(pairs) for purpose, pairs in found.items()} == {
        "reward_train": 6,
        "reward_heldout": 4,
        "policy": 2,
    }
    ids = [pair.pair_id for pair in found["reward_train"]]
    assert ids == sorted(ids)
    first = found["reward_train"][0]
    assert first.card.name == "Mira"
    assert "sure" in first.chosen.split()


def change(key: str, value: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: rows[1].update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("chosen", None), "row 1 .*chosen has no text"),
        (change("rejected", "  "), "row 1 .*rejected has no text"),
        (change("kind", "guess"), "row 1 .*kind 'guess'"),
        (change("purpose", "fun"), "row 1 .*purpose 'fun'"),
        (change("history", []), "row 1 .*history does not end"),
        (change("history", [{"role": "assistant", "content": "hi"}]), "row 1 .*history does not end"),
        (change("card_name", ""), "row 1 .*card_name is empty"),
        (change("agreement", float("nan")), "row 1 .*agreement is not a number"),
        (change("pair_id", "reward_train-0-0"), "row 1 .*pair_id repeats"),
        (change("user_id", "reward_heldout-user-0"), "users are in both .*reward_heldout-user-0"),
    ],
)
def test_a_bad_row_is_named(
    damage: Callable[[list[dict[str, Any]]], Any], message: str, tmp_path: Path
) -> None:
    rows = planted_rows(2, "reward_train") + planted_rows(2, "reward_heldout")
    damage(rows)
    write_pairs(rows, tmp_path / "pairs.parquet")
    with pytest.raises(PairError, match=message):
        load_pairs(tmp_path / "pairs.parquet")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("traits", "brave", "card.traits: must be a list of texts"),
        ("instructions", [1], "card.instructions: must be a list of texts"),
        ("card_name", " ", "card.name: a text must be there"),
        ("history", "[]", "history: must be a list of turns"),
        ("history", [{"role": "user"}], "history.content: turn 0: a text must be there"),
        ("history", [{"role": "system", "content": "a"}], "history.role: turn 0"),
        ("agreement", "high", "agreement is not a number"),
        ("user_id", 5, "user_id is no text"),
    ],
)
def test_a_field_of_another_type_is_named(key: str, value: Any, message: str) -> None:
    """A table of others may have other types: a text is not taken as a list of its letters."""
    rows = planted_rows(2, "reward_train")
    rows[1][key] = value
    with pytest.raises(PairError, match=rf"x\.parquet: row 1 .*{message}"):
        parse_pairs(rows, Path("x.parquet"))


@pytest.mark.parametrize("purpose", ["reward_train", "reward_heldout"])
def test_no_pair_to_train_on_or_to_measure_on_is_an_error(purpose: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_pairs(planted_rows(2, purpose), path)
    with pytest.raises(PairError, match="no pair with purpose"):
        require(load_pairs(path), path)
