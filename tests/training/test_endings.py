"""A completion that is learned ends in the end token, as the trainer's own collator gives it."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from flywheel_tasks.training.endings import Completion, check_endings, check_trainer
from flywheel_tasks.training.run import TrainingError

END = 2
ENDS = frozenset([END])


def trainer(rows: list[dict[str, list[int]]], collator: Any) -> Any:
    arguments = SimpleNamespace(per_device_train_batch_size=2)
    return SimpleNamespace(train_dataset=rows, data_collator=collator, args=arguments)


def sft_row(prompt: int, reply: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [9] * prompt + reply, "labels": [-100] * prompt + reply}


SFT = DataCollatorForLanguageModeling(pad_token_id=END)  # padding is the end token, as in many chat models


@given(st.lists(st.tuples(st.lists(st.integers(3, 9), max_size=6), st.booleans()), min_size=1, max_size=8))
def test_whole_completions_pass_and_cut_ones_are_counted(found: list[tuple[list[int], bool]]) -> None:
    """A row has the limit's tokens where it was cut, and one less than that at most where it was not."""
    completions = [
        Completion(f"row {n}", [*ids, 5] if cut else [*ids, END], 12 if cut else 5 + len(ids))
        for n, (ids, cut) in enumerate(found)
    ]
    assert check_endings(completions, ENDS, 12) == {
        "completions": len(found),
        "cut": sum(cut for _, cut in found),
    }


@pytest.mark.parametrize(
    ("ids", "tokens", "limit", "message"),
    [
        ([], 4, 12, "row 7: the completion has no token"),
        ([5, 6], 11, 12, r"row 7: .* ends in token 6 and not in an end token \(11 tokens in all, only at 12"),
        ([5, END, 6, END], 8, 12, "row 7: the completion has an end token at 2 of 4 tokens and goes on"),
        ([5, END], 13, 12, "row 7: the row has 13 tokens, more than 12"),
        ([5, 6], 12, None, "row 7: .* none may be cut"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    ids: list[int], tokens: int, limit: int | None, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        check_endings([Completion("row 7", ids, tokens)], ENDS, limit)


def test_every_row_of_sft_is_looked_at_as_it_is_collated() -> None:
    rows = [sft_row(3, [5, END]), sft_row(1, [5, 6, 7, END]), sft_row(4, [5, 6, 7, 8])]
    assert check_trainer(trainer(rows, SFT), ["a", "b", "c"], END, 8) == {"completions": 3, "cut": 1}
    with pytest.raises(TrainingError, match=r"^c: "):
        check_trainer(trainer(rows, SFT), ["a", "b", "c"], END, 9)
    with pytest.raises(TrainingError, match="has 3 rows of 2"):
        check_trainer(trainer(rows, SFT), ["a", "b"], END, 8)
    with pytest.raises(TrainingError, match="all 1 completions are cut at 8"):
        check_trainer(trainer(rows[2:], SFT), ["c"], END, 8)


def test_a_collator_that_takes_the_end_for_padding_is_found() -> None:
    def masks(examples: list[Any]) -> Any:
        batch = SFT(examples)
        batch["labels"][batch["input_ids"] == END] = -100  # what masking by the padding token does
        return batch

    with pytest.raises(TrainingError, match=r"^a: .* ends in token 5"):
        check_trainer(trainer([sft_row(3, [5, END])], masks), ["a"], END, 8)


def test_both_sides_of_each_pair_are_looked_at() -> None:
    rows = [
        {"prompt_ids": [9, 9], "chosen_ids": [5, END], "rejected_ids": [6, 7, END]},
        {"prompt_ids": [9], "chosen_ids": [8, END], "rejected_ids": [6, 6, 6, 6]},
    ]
    whole = DataCollatorForPreference(pad_token_id=END)
    assert check_trainer(trainer(rows, whole), ["p0", "p1"], END, 5) == {"completions": 4, "cut": 1}
    with pytest.raises(TrainingError, match=r"^p1, rejected: "):
        check_trainer(trainer(rows, whole), ["p0", "p1"], END, 6)
    # A trainer that cuts once more, below the limit of the encoding, takes the end of another reply.
    cuts = DataCollatorForPreference(pad_token_id=END, max_length=4)
    with pytest.raises(TrainingError, match=r"^p0, rejected: .* ends in token 7"):
        check_trainer(trainer(rows, cuts), ["p0", "p1"], END, 5)
