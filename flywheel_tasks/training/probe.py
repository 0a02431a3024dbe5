"""A saved model's own proof: what it answered to a fixed text when it was saved, kept beside its weights.

Score heads and adapters are known to get lost between a training process and the one that loads its model
(huggingface/trl#2743, huggingface/transformers#48595). A stage that trains reloads what it saved, but in its own
process. So the trained model's answers are written to ``probe.json``, and every process that loads the folder, which is
always another one, must get the same answers before it may use the model. The text is made up: nothing of a user is
published with the model.
"""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flywheel_tasks.storage.documents import read_json, write_json

FILE = "probe.json"
TOLERANCE = 1e-3  # of an answer, relative to the largest one; float32 on another device is well within it
_CHAT = (
    {"role": "user", "content": "Hello there! What have you been up to today?"},
    {"role": "assistant", "content": "Mending nets since dawn, and the sea was calm. Shall I tell you more?"},
)


class ProbeError(RuntimeError):
    """A loaded model does not answer as it did when it was saved; the message names its folder."""


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The fixed chat in the tokens of a model.

    Args:
        tokenizer: with a chat template.
    """
    ids = tokenizer.apply_chat_template(list(_CHAT), tokenize=True, return_dict=False)
    return cast(list[int], ids)


@torch.no_grad()
def answers(model: torch.nn.Module, ids: list[int]) -> list[float]:
    """What a model says of a text, as few numbers that all of its weights take part in.

    Args:
        model: a causal language model or a sequence classifier, with adapters or without; it is put into evaluation
            mode. The numbers are as exact as its weights.
        ids: token ids, at least two.

    Returns:
        of a language model the log-probability of each token after the first, given those before it; of a classifier
        its scores of the text and of the text's first half.
    """
    model.eval()
    place = next(model.parameters()).device

    def logits(tokens: list[int]) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=torch.tensor([tokens], device=place)).logits
        return found[0].float().cpu()

    whole = logits(ids)
    if whole.dim() == 1:
        return [*whole.tolist(), *logits(ids[: max(1, len(ids) // 2)]).tolist()]
    said = torch.log_softmax(whole[:-1], dim=-1)
    return said.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def write_probe(folder: Path, ids: list[int], said: list[float]) -> None:
    """Keep a model's answers.

    Args:
        folder: of the saved model.
        ids: the text.
        said: :func:`answers` of the model that was trained, in float32.
    """
    write_json({"input_ids": ids, "answers": said}, folder / FILE)


def check_probe(model: PreTrainedModel, folder: Path) -> None:
    """Ask a model that was loaded in float32 what it was asked when it was saved.

    Args:
        model: as loaded.
        folder: it was loaded from, with ``probe.json``.

    Raises:
        ProbeError: an answer differs.
    """
    kept: dict[str, Any] = read_json(folder / FILE)
    expected, found = (torch.tensor(said) for said in (kept["answers"], answers(model, kept["input_ids"])))
    if expected.shape != found.shape:
        raise ProbeError(f"{folder}: gives {len(found)} answers to {FILE}, {len(expected)} are kept")
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1.0))
    if not difference <= TOLERANCE:
        raise ProbeError(
            f"{folder}: the loaded model answers otherwise than when it was saved ({difference:.1e} of the largest "
            f"answer in {FILE}, allowed {TOLERANCE:g}): weights or its head were lost on the way"
        )


def load_model(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Load a model of a folder, and check that it is the one that was saved.

    A folder without ``probe.json`` was made by others (a hub model, a team's own policy): there is nothing to compare.

    Args:
        kind: an ``AutoModelFor...`` class.
        folder: of ``save_pretrained``, safetensors only.
        dtype: of the weights that are returned. The check is in float32 whatever this is: in bfloat16 a lost adapter of
            a short training would be within rounding.
        options: of ``from_pretrained``.

    Raises:
        ProbeError: it is another model, or weights are missing.
    """
    known = (folder / FILE).exists()

    def load(number: torch.dtype) -> PreTrainedModel:
        found: Any = kind.from_pretrained(
            folder, dtype=number, use_safetensors=True, output_loading_info=True, **options
        )
        model, report = found
        if missing := sorted(report["missing_keys"]):
            raise ProbeError(f"{folder}: weights are missing: {', '.join(missing[:5])}")
        loaded: PreTrainedModel = model.eval()
        return loaded

    model = load(torch.float32 if known else dtype)
    if known:
        check_probe(model, folder)
    if model.dtype != dtype:
        del model
        model = load(dtype)
    return model
