from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.curation.tables import CARDS, PROMPTS
from flywheel_tasks.policy.prompts import PromptError, choose, load_split, prompt_of
from tests.policy.conftest import CARD, prompt_row, write


def tables(folder: Path, rows: list[dict[str, Any]]) -> tuple[Path, Path]:
    write(rows, PROMPTS, folder / "split.parquet")
    write([CARD], CARDS, folder / "cards.parquet")
    return folder / "split.parquet", folder / "cards.parquet"


def test_prompts_are_sorted_and_carry_their_card(tmp_path: Path) -> None:
    prompts = load_split(*tables(tmp_path, [prompt_row("a", n) for n in (3, 1, 2)]))
    assert [prompt.prompt_id for prompt in prompts] == ["a-1", "a-2", "a-3"]
    assert prompts[0].card.instructions == ("Never use emoji.",)
    assert prompts[0].context()["card_name"] == "Mira"
    assert [prompt.user for prompt in prompts] == ["a-u0", "a-u1", "a-u1"]


def test_a_prompt_of_nobody_known_is_its_own_user() -> None:
    row = {"prompt_id": "s1", "source": "set", "history": [{"role": "user", "content": "Hi"}]}
    assert prompt_of(row, Card("c1", "Mira", (), ()), "x").user == "s1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card_id": "c9"}, r"split.parquet: row 1 .* card c9 is not in .*cards.parquet"),
        ({"prompt_id": "a-0"}, "row 1 .* prompt_id repeats"),
        ({"history": [{"role": "assistant", "content": "x"}]}, "row 1 .* does not end with a user's turn"),
        ({"source": None}, "row 1 .* source is empty"),
    ],
)
def test_a_bad_row_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [prompt_row("a", 0), prompt_row("a", 1) | change]
    with pytest.raises(PromptError, match=message):
        load_split(*tables(tmp_path, rows))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="has no prompts"):
        load_split(*tables(tmp_path, []))


def test_a_choice_keeps_the_mix_and_depends_on_seed_and_purpose_only(tmp_path: Path) -> None:
    prompts = load_split(*tables(tmp_path, [prompt_row("a", n) for n in range(40)]))
    chosen = choose(prompts, 12, 1, "x")
    assert Counter(prompt.source for prompt in chosen) == {"internal": 3, "user": 9}
    assert choose(prompts[::-1], 12, 1, "x") == chosen
    assert choose(prompts, 12, 2, "x") != chosen
    assert choose(prompts, 12, 1, "y") != chosen
    assert len(choose(prompts, 99, 1, "x")) == 40
