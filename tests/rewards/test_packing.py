from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from flywheel_tasks.rewards.packing import (
    Group,
    PackingError,
    attention_mask,
    check_packing,
    pack,
    packed_scores,
)
from flywheel_tasks.rewards.trainer import PackRows

PAD = 0
TOKENS = st.lists(st.integers(1, 49000), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    found = AutoModelForSequenceClassification.from_pretrained(tiny_models / "base", num_labels=1)
    torch.nn.init.normal_(found.score.weight)  # so that scores differ clearly
    found.config.pad_token_id = PAD
    return found.eval()


@torch.no_grad()
def alone(model: PreTrainedModel, ids: list[int]) -> float:
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


@settings(max_examples=25)
@given(st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_packed_scores_are_those_of_each_reply_alone(
    model: PreTrainedModel, groups: list[tuple[list[int], list[list[int]]]]
) -> None:
    with torch.no_grad():
        packed = packed_scores(model, pack([Group(*group) for group in groups], PAD)).tolist()
    expected = [alone(model, prompt + reply) for prompt, replies in groups for reply in replies]
    assert packed == pytest.approx(expected, abs=1e-4)


def test_padding_and_neighbours_change_no_score(model: PreTrainedModel) -> None:
    row = Group([5, 6, 7], [[8, 9], [10, 2]])
    with torch.no_grad():
        by_itself = packed_scores(model, pack([row], PAD))
        beside_a_long_one = packed_scores(model, pack([row, Group([11] * 40, [[12] * 20])], PAD))[:2]
    assert torch.allclose(by_itself, beside_a_long_one, atol=1e-5)


def test_the_models_own_pooling_takes_the_end_token_too(model: PreTrainedModel) -> None:
    """Other programs load the folder as a plain classifier and pad: the end token must be what counts."""
    end = 2
    batch = torch.tensor([[5, 6, end, PAD, PAD], [5, 6, 7, 8, end]])
    mask = (batch != PAD).long()
    with torch.no_grad():
        pooled = model(input_ids=batch, attention_mask=mask).logits[:, 0].tolist()
    assert pooled == pytest.approx([alone(model, [5, 6, end]), alone(model, [5, 6, 7, 8, end])], abs=1e-5)


def test_mask_lets_a_reply_see_the_prompt_and_itself() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    allowed = attention_mask(segments, torch.float32)[0, 0] == 0
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert allowed.long().tolist() == expected


def test_an_empty_continuation_is_an_error() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        pack([Group([1], [[]])], PAD)


def test_rows_of_one_prompt_are_packed_together() -> None:
    examples = [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]},
        {"prompt_ids": [9], "chosen_ids": [3], "rejected_ids": [7]},
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [6]},
    ]
    batch = PackRows(PAD)(examples)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [9, 3, 7, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 2, 3, 2]
    assert batch["chosen_ids"].tolist() == [0, 3, 0]
    assert batch["rejected_ids"].tolist() == [1, 4, 2]
    assert batch["attention_mask"].sum() == 9


def test_a_model_that_ignores_the_mask_is_found(model: PreTrainedModel) -> None:
    group = Group([5, 6, 7], [[8, 9], [10, 2]])
    check_packing(model, group, PAD)

    def causal_only(
        module: object, args: object, kwargs: dict[str, object]
    ) -> tuple[object, dict[str, object]]:
        return args, kwargs | {"attention_mask": None}

    hook = model.register_forward_pre_hook(causal_only, with_kwargs=True)
    try:
        with pytest.raises(PackingError, match="scores packed replies differently"):
            check_packing(model, group, PAD)
    finally:
        hook.remove()
