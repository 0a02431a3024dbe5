from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.settings import Sampling
from tests.policy.conftest import clear_choices, greedy

RAGGED = [[5, 6, 7, 8, 9, 10, 11], [40], [300, 301, 302], [9, 8, 7, 6, 5], [40, 41], [77, 78, 79, 80, 81, 82]]


def sampling(**changes: Any) -> Sampling:
    return Sampling(**{"max_new_tokens": 8, "temperature": 1.0, "top_k": 50, "batch_rows": 8, **changes})


@pytest.fixture(scope="module")
def model(tiny_models: Path) -> Any:
    return clear_choices(tiny_models / "base", 0.3)


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_models / "base")


def sampler(model: Any, tokenizer: Any, **changes: Any) -> Sampler:
    return Sampler.from_model(model, tokenizer, sampling=sampling(**changes), max_prompt_tokens=96)


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"temperature": 1e-30}])
def test_without_chance_it_is_greedy_generation_for_ragged_prompts(
    model: Any, tokenizer: Any, limit: Any
) -> None:
    drawn = sampler(model, tokenizer, **limit).sample_ids(RAGGED, 2, seed=0)
    for prompt, replies in zip(RAGGED, drawn, strict=True):
        assert replies == [greedy(model, prompt, 8)] * 2


def test_a_reply_stops_at_an_end_token_and_other_rows_go_on(model: Any, tokenizer: Any) -> None:
    replies = {tuple(p): greedy(model, p, 8) for p in RAGGED}
    # Declare what one prompt says at its third step to be an end token as well.
    end = replies[tuple(RAGGED[0])][2]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, end]
    try:
        drawn = sampler(model, tokenizer, top_k=1).sample_ids(RAGGED, 2, seed=0)
    finally:
        model.generation_config.eos_token_id = before
    lengths = set()
    for prompt, rows in zip(RAGGED, drawn, strict=True):
        full = replies[tuple(prompt)]
        stop = next((i + 1 for i, token in enumerate(full) if token in {2, end}), len(full))
        assert rows == [full[:stop]] * 2
        lengths.add(stop)
    assert min(lengths) <= 3
    assert len(lengths) > 1


def test_first_tokens_follow_the_models_distribution(model: Any, tokenizer: Any) -> None:
    prompt, draws = RAGGED[2], 4000
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    top, ids = (logits / 2.0).topk(6)
    chances = dict(zip(ids.tolist(), torch.softmax(top, 0).tolist(), strict=True))
    drawn = sampler(model, tokenizer, temperature=2.0, top_k=6, max_new_tokens=1, batch_rows=1000).sample_ids(
        [prompt, [1, 2, 3, 4, 5]], draws, seed=11
    )
    counts = Counter(reply[0] for reply in drawn[0])
    assert set(counts) <= set(chances)
    observed, expected = [counts[i] for i in chances], [draws * p for p in chances.values()]
    assert min(expected) > 20
    assert chisquare(observed, expected).pvalue > 0.001
    # The same test must notice a wrong temperature.
    wrong = torch.softmax(top * 2.0 / 1.6, 0) * draws
    assert chisquare(observed, wrong.tolist()).pvalue < 0.001


def test_second_tokens_follow_the_models_distribution(model: Any, tokenizer: Any) -> None:
    prompt, draws = RAGGED[3], 4000
    drawn = sampler(model, tokenizer, temperature=2.0, top_k=3, max_new_tokens=2, batch_rows=1000).sample_ids(
        [prompt], draws, seed=5
    )[0]
    first = Counter(reply[0] for reply in drawn).most_common(1)[0][0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, first]])).logits[0, -1].double()
    top, ids = (logits / 2.0).topk(3)
    after = Counter(reply[1] for reply in drawn if reply[0] == first)
    expected = torch.softmax(top, 0) * after.total()
    assert chisquare([after[i] for i in ids.tolist()], expected.tolist()).pvalue > 0.001


def test_a_seed_repeats_its_draw_whatever_the_global_generator(model: Any, tokenizer: Any) -> None:
    one = sampler(model, tokenizer)
    torch.manual_seed(1)
    first = one.sample_ids(RAGGED, 2, seed=4)
    torch.manual_seed(2)
    torch.rand(5)
    assert one.sample_ids(RAGGED, 2, seed=4) == first
    assert one.sample_ids(RAGGED, 2, seed=5) != first


def test_sampling_leaves_the_global_generator_and_the_models_mode_alone(model: Any, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    model.train()
    try:
        sampler(model, tokenizer).sample_ids(RAGGED, 2, seed=4)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), state)


def test_more_replies_than_rows_in_a_batch(model: Any, tokenizer: Any) -> None:
    drawn = sampler(model, tokenizer, batch_rows=3).sample_ids(RAGGED[:2], 5, seed=4)
    assert [len(replies) for replies in drawn] == [5, 5]
    assert len({tuple(reply) for reply in drawn[0]}) > 1


def test_texts_of_cards_and_histories(tiny_models: Path, tokenizer: Any) -> None:
    from flywheel_tasks.settings import Compute

    one = Sampler(
        tiny_models / "base",
        sampling=sampling(),
        compute=Compute(precision="float32", threads=1),
        max_prompt_tokens=96,
    )
    card = Card("c1", "Ada", ("curious",), ("Never use emoji.",))
    history = [{"role": "user", "content": "Hi there"}]
    (replies,) = one.sample([(card, history)], 3, seed=1)  # type: ignore[list-item]
    assert len(replies) == 3
    for reply in replies:
        assert reply == reply.strip()
        assert "<|im_end|>" not in reply


@pytest.mark.parametrize(
    ("prompts", "n", "message"), [([[]], 1, "prompt 0 has no tokens"), ([[1]], 0, "at least 1")]
)
def test_bad_calls_are_refused(model: Any, tokenizer: Any, prompts: Any, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(model, tokenizer).sample_ids(prompts, n, seed=0)


def test_a_damaged_model_is_refused(tiny_models: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        sampler(model, tokenizer).sample_ids(RAGGED, 1, seed=0)
