"""Where RL starts: at the trained policy, or on the way back to the champion if it went too far."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flywheel_tasks.policy.safe_start import find_start, interpolate
from flywheel_tasks.training.probe import FILE, load_model

CHAMPION = [{"reply": "old", "reward": 0.0}] * 4


@pytest.fixture
def moved(tiny_models: Path, tmp_path: Path) -> Path:
    """The tiny model, trained so to say: every weight one more."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models / "base")
    folder = tmp_path / "moved"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny_models / "base" / name).read_bytes())
    weights = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def replies_that_gain(most: float) -> Any:
    """Replies whose reward over the champion's grows with the share of the way, the same spread everywhere."""

    def replies(folder: Path, share: float) -> list[dict[str, Any]]:
        return [{"reply": "new", "reward": most * share + spread} for spread in (-1.0, 0.0, 0.0, 1.0)]

    return replies


def test_weights_lie_between_the_two(tiny_models: Path, moved: Path, tmp_path: Path) -> None:
    interpolate(tiny_models / "base", moved, 0.25, tmp_path / "between")
    assert (tmp_path / "between" / FILE).exists()
    found = load_model(
        AutoModelForCausalLM, tmp_path / "between", torch.float32
    )  # it answers as its probe says
    first = load_model(AutoModelForCausalLM, tiny_models / "base", torch.float32)
    for (name, value), old in zip(found.named_parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(value, old + 0.25, msg=name)


def test_models_of_other_shapes_have_nothing_between_them(
    tiny_models: Path, moved: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(moved)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "bigger")
    with pytest.raises(ValueError, match="no models of one architecture"):
        interpolate(tiny_models / "base", tmp_path / "bigger", 0.5, tmp_path / "between")
    assert not (tmp_path / "between").exists()


@pytest.mark.parametrize(
    ("gain", "most", "share"),
    [
        (0.1, 0.55, 1.0),  # wins 0.55 at most: as it is
        (9.0, None, 1.0),  # no limit
        (0.14, 0.55, 1.0),  # 0.57: near enough
        (0.83, 0.60, 0.2492),  # wins 0.85; where the straight line from the champion wins 0.60
        (0.27, 0.60, 0.5),  # at least half of the way is taken away, if any
        (9.0, 0.60, 0.0230),  # wins always: an eighth, which still wins 0.92, and then the line from there
        (9.0, 0.50, 1 / 512),  # three tries are all
    ],
)
def test_a_policy_that_wins_too_much_is_drawn_back(
    gain: float, most: float | None, share: float, tiny_models: Path, moved: Path, tmp_path: Path
) -> None:
    start = find_start(
        tiny_models / "base", moved, most, replies_that_gain(gain), CHAMPION, tmp_path / "work"
    )
    assert start.share == pytest.approx(share, abs=1e-4)
    assert start.rows == replies_that_gain(gain)(start.folder, start.share)
    assert (start.folder == moved) == (share == 1.0)
    assert (start.folder / "model.safetensors").exists()
