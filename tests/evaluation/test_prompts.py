from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.prompts import LeakError, card_of, check_disjoint, select
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.tables import write_rows

SCHEMA = pa.schema([("prompt_id", pa.string()), ("user_id", pa.string())])


def write_splits(folder: Path, users: dict[str, list[str]]) -> None:
    for split in SPLITS:
        rows = [{"prompt_id": f"{split}{i}", "user_id": user} for i, user in enumerate(users.get(split, []))]
        write_rows(rows, SCHEMA, folder / f"{split}.parquet")


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "evaluation"])
def test_an_evaluated_user_in_any_other_split_is_an_error(tmp_path: Path, split: str) -> None:
    write_splits(tmp_path, {"evaluation": ["ann", "bob"], split: ["bob", "cid"]})
    with pytest.raises(LeakError, match=rf"evaluation\.parquet and {split}\.parquet share 1 users \(bob\)"):
        check_disjoint(tmp_path)


def test_disjoint_splits_are_fine(tmp_path: Path) -> None:
    write_splits(tmp_path, {split: [split] for split in SPLITS})
    check_disjoint(tmp_path)


def rows(user: int, internal: int, per_user: int = 5) -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"{source}{i:03}", "user_id": f"{source}-{i // per_user}", "source": source}
        for source, count in (("user", user), ("internal", internal))
        for i in range(count)
    ]


def test_both_sources_get_half_and_users_take_turns() -> None:
    chosen = select(rows(50, 30), 20, seed=1)
    assert Counter(row["source"] for row in chosen) == {"user": 10, "internal": 10}
    assert set(Counter(row["user_id"] for row in chosen if row["source"] == "user").values()) == {1}
    assert [row["prompt_id"] for row in chosen] == sorted(row["prompt_id"] for row in chosen)


def test_what_one_source_lacks_the_other_gives() -> None:
    assert Counter(r["source"] for r in select(rows(50, 3), 20, seed=1)) == {"user": 17, "internal": 3}
    assert Counter(r["source"] for r in select(rows(2, 50), 20, seed=1)) == {"user": 2, "internal": 18}
    assert len(select(rows(4, 3), 20, seed=1)) == 7


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    data = rows(50, 30)
    assert select(data, 20, seed=1) == select(data[::-1], 20, seed=1)
    assert select(data, 20, seed=1) != select(data, 20, seed=2)


def test_bad_splits_are_errors() -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        select([], 5, seed=1)
    with pytest.raises(ValueError, match="unknown sources: bot"):
        select([{"prompt_id": "p", "user_id": "u", "source": "bot"}], 5, seed=1)
    with pytest.raises(ValueError, match="2 prompts with 1 different ids"):
        select(rows(1, 0) * 2, 5, seed=1)


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt p1: card c9 is not in .*cards"):
        card_of({"prompt_id": "p1", "card_id": "c9"}, {"c1": Card("c1", "x", (), ())}, tmp_path / "cards")
