"""The benchmark of reward models: its draw of pairs, its difference of accuracies, and what it keeps by seed."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer

from benchmarks.reward_model import Work, _same_facts, difference, draw
from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.storage.tables import write_rows
from tests.rewards.conftest import planted_rows


def test_pairs_are_drawn_alike_each_time_and_no_user_is_on_both_sides(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_rows(planted_rows(40, "reward_train"), PAIRS, pairs)
    rows = draw(pairs, 40, 16)
    assert rows == draw(pairs, 40, 16)
    users = {
        purpose: {row["user_id"] for row in rows if row["purpose"] == purpose}
        for purpose in ("reward_train", "reward_heldout")
    }
    assert not users["reward_train"] & users["reward_heldout"]
    assert sum(row["purpose"] == "reward_train" for row in rows) == 40
    with pytest.raises(typer.BadParameter, match="pairs for reward_train, 79 are asked for"):
        draw(pairs, 79, 1)


def test_the_difference_is_paired_and_of_all_seeds() -> None:
    random = np.random.default_rng(0)
    users = [f"u{n // 2}" for n in range(200)]
    plain = [np.where(random.random(200) < 0.6, 1.0, -1.0) for _ in range(2)]
    ours = [side.copy() for side in plain]
    worse = [np.flatnonzero(side < 0)[:10] for side in ours]
    for side, rows in zip(ours, worse, strict=True):
        side[rows] = 1.0  # ten more right in each seed, all others the same
    found = difference([side.tolist() for side in ours], [side.tolist() for side in plain], users)
    assert found["value"] == pytest.approx(0.05)
    assert found["low"] is not None
    assert found["high"] is not None
    assert 0.02 < found["low"] < 0.05 < found["high"] < 0.09
    same = difference([plain[0].tolist()], [plain[0].tolist()], users)
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)


def test_a_side_that_is_there_is_not_trained_again(tmp_path: Path) -> None:
    work = Work(3, tmp_path, {}, tmp_path, tmp_path, {})
    calls: list[Path] = []

    def run(out: Path) -> dict[str, int]:
        calls.append(out)
        return {"steps": 7}

    assert work.side("ours", run) == work.side("ours", run) == {"steps": 7}
    assert calls == [tmp_path / "ours-3"]
    assert json.loads((tmp_path / "seed-3-ours.json").read_text()) == {"steps": 7}


def test_results_of_other_data_or_settings_are_not_mixed(tmp_path: Path) -> None:
    _same_facts(tmp_path, {"base": "a", "settings": {"epochs": 1.0}})
    _same_facts(tmp_path, {"base": "a", "settings": {"epochs": 1.0}})
    with pytest.raises(typer.BadParameter, match="another settings"):
        _same_facts(tmp_path, {"base": "a", "settings": {"epochs": 2.0}})
