"""What prompts of one character share is read once, and nobody can tell."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    GPTNeoConfig,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
)

from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.policy.shared_beginnings import batches, can_share, portions
from flywheel_tasks.settings import Sampling
from tests.policy.conftest import clear_choices, greedy

ANNE, BO = [300, 301, 302, 303, 304, 305, 306, 307], [300, 40, 41, 42, 43]
PROMPTS = [
    [*ANNE, 5, 6, 7],
    [*BO, 9],
    [77, 78, 79],
    [*ANNE, 8],
    [*BO, 10, 11, 12, 13],
    [*ANNE, 5, 9, 9, 9, 9, 9],
    [*ANNE, 5, 6, 7],
]
CARDS = ["anne", "bo", "cy", "anne", "bo", "anne", "anne"]


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> Any:
    return clear_choices(tiny_models / "base", 0.3)


def _sampler(model: Any, tiny_models: Path, **changes: Any) -> Sampler:
    settings = Sampling(**{"max_new_tokens": 8, "temperature": 1.0, "top_k": 50, "batch_rows": 4, **changes})
    tokenizer = AutoTokenizer.from_pretrained(tiny_models / "base")
    return Sampler.from_model(model, tokenizer, sampling=settings, max_prompt_tokens=96)


def _read(model: Any, work: Any) -> int:
    """Tokens, padding too, that the model reads before each batch's first new one."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        work()
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_greedy_replies_are_those_of_prompts_that_are_read_whole(
    model: Any, tiny_models: Path, rows: int
) -> None:
    drawn = _sampler(model, tiny_models, top_k=1, batch_rows=rows).sample_ids(PROMPTS, 2, 0, alike=CARDS)
    assert drawn == [[greedy(model, prompt, 8)] * 2 for prompt in PROMPTS]


def test_less_is_read(model: Any, tiny_models: Path) -> None:
    one = _sampler(model, tiny_models, max_new_tokens=1, batch_rows=6)
    whole = _read(model, lambda: one.sample_ids(PROMPTS, 1, 0))
    shared = _read(model, lambda: one.sample_ids(PROMPTS, 1, 0, alike=CARDS))
    assert whole == 6 * 11 + 14
    assert shared == 2 * 8 + 6 * 6 + 3  # two beginnings, six rests, and one prompt whole


def test_what_fits_into_one_batch_stays_one(model: Any, tiny_models: Path) -> None:
    one = _sampler(model, tiny_models, max_new_tokens=1, batch_rows=7)
    assert _read(model, lambda: one.sample_ids(PROMPTS, 1, 0, alike=CARDS)) == 7 * 14


def test_a_card_whose_beginning_was_cut_keeps_no_other_from_sharing() -> None:
    cut = [[5, 6, 7], [6, 7, 8]]
    found = portions([*PROMPTS, *cut], [*CARDS, "cut", "cut"], 6)
    assert [len(portion.beginnings) for portion in found] == [2, 0]
    assert found[1].positions == (2, 7, 8)


def test_a_beginning_serves_many_batches_and_seeds_still_decide(model: Any, tiny_models: Path) -> None:
    one = _sampler(model, tiny_models, batch_rows=2)
    first = one.sample_ids(PROMPTS, 1, 3, alike=CARDS)
    assert one.sample_ids(PROMPTS, 1, 3, alike=CARDS) == first
    assert one.sample_ids(PROMPTS, 1, 4, alike=CARDS) != first


def test_cards_that_say_alike_and_begin_otherwise_are_read_whole(model: Any, tiny_models: Path) -> None:
    prompts = [[5, 6, 7], [6, 7, 8], [7]]
    assert [p.beginnings for p in portions(prompts, ["a"] * 3, 4)] == [()]
    drawn = _sampler(model, tiny_models, top_k=1).sample_ids(prompts, 1, 0, alike=["a"] * 3)
    assert drawn == [[greedy(model, prompt, 8)] for prompt in prompts]


def test_models_that_count_places_of_the_cache_do_not_share() -> None:
    assert not can_share(MptConfig())  # ALiBi
    assert not can_share(GPTNeoConfig())  # local windows in plain layers


def test_models_with_other_layers_read_every_prompt_whole(tiny_models: Path) -> None:
    config = MistralConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    assert not can_share(config)
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    one = _sampler(model, tiny_models, max_new_tokens=1)
    assert _read(model, lambda: one.sample_ids(PROMPTS, 1, 0, alike=CARDS)) == _read(
        model, lambda: one.sample_ids(PROMPTS, 1, 0)
    )


_PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(st.tuples(_PROMPT, st.sampled_from("abcdef")), max_size=20), st.integers(1, 4))
def test_every_prompt_is_in_one_portion_and_put_together_again(
    asked: list[tuple[list[int], str]], most: int
) -> None:
    prompts, alike = [prompt for prompt, _ in asked], [kind for _, kind in asked]
    seen = []
    for portion in portions(prompts, alike, most):
        assert len(portion.beginnings) <= most
        for k, (position, rest) in enumerate(zip(portion.positions, portion.rests(prompts), strict=True)):
            begun = portion.beginnings[portion.whose[k]] if portion.beginnings else ()
            assert [*begun, *rest] == prompts[position]
            assert rest
            seen.append(position)
    assert sorted(seen) == list(range(len(prompts)))


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 5))
def test_batches_hold_every_row_once_the_short_ones_first(lengths: list[int], size: int) -> None:
    found = list(batches(lengths, size))
    assert all(1 <= len(batch) <= size for batch in found)
    places = [place for batch in found for place in batch]
    assert [lengths[place] for place in places] == sorted(lengths)
    assert sorted(places) == list(range(len(lengths)))
