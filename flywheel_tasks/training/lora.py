"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the last layers, merged into a plain model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flywheel_tasks.settings import Lora
from flywheel_tasks.training.probe import answers, check_probe, probe_ids, write_probe


class MergeError(RuntimeError):
    """A merged model does not compute what the trained one did."""


def lora_config(
    lora: Lora,
    layers: int | PretrainedConfig,
    task_type: str,
    modules_to_save: Sequence[str] | None = None,
) -> LoraConfig:
    """LoRA on every linear projection of the last ``lora.layers`` transformer layers.

    Nothing below the first adapted layer needs a gradient, so the backward pass stops there.
    Dropout is 0: a run that resumes is then the same as one that does not.

    Args:
        lora: rank, alpha, and how many layers (all of them, if the model has fewer).
        layers: the model's number of layers, or its config.
        task_type: peft's task type: ``CAUSAL_LM`` or ``SEQ_CLS``.
        modules_to_save: modules that are trained in full, as a new score head must be (huggingface/trl#2743).
    """
    total = layers if isinstance(layers, int) else layers.get_text_config().num_hidden_layers
    frozen = range(max(0, total - lora.layers))
    # peft ignores layers_to_transform when it lists all linear modules itself; excluding the lower layers
    # works for every architecture. The first numbered part of a module's name is its layer.
    lower = rf"(?:[A-Za-z_][^.]*\.)+(?:{'|'.join(map(str, frozen))})\..*" if frozen else None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
        exclude_modules=lower,
        task_type=task_type,
        modules_to_save=list(modules_to_save) if modules_to_save else None,
    )


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    return model(input_ids=ids.to(next(model.parameters()).device)).logits.float().cpu()


def _load_again(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    found: Any = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    loaded, report = found
    if report["missing_keys"] or report["unexpected_keys"]:
        raise MergeError(
            f"{folder}: missing {report['missing_keys']}, unexpected {report['unexpected_keys']}"
        )
    return loaded.eval()


def merge_to_full(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    probe: Sequence[int],
    tolerance: float = 1e-3,
) -> PreTrainedModel:
    """Merge adapters and fully trained modules into a plain float32 model, save it, and check it.

    What the trained model answers to a fixed text is kept beside it, for the processes that load it to check
    (:mod:`flywheel_tasks.training.probe`).

    Args:
        model: the trained model; it is merged in place.
        tokenizer: saved beside it.
        out: folder to write (safetensors, config, tokenizer).
        probe: token ids of one sequence on which the saved model must reproduce the trained one.
        tolerance: largest allowed difference of a logit, relative to the largest logit.

    Returns:
        the model as loaded again from ``out``, in evaluation mode.

    Raises:
        MergeError: the saved model gives other logits, as when a score head is not restored
            (huggingface/transformers#48595), or a weight is missing, left over or not finite.
        ProbeError: it gives other answers to the fixed text.
    """
    ids = torch.tensor([list(probe)])
    before = _logits(model, ids)
    asked = probe_ids(tokenizer)
    said = answers(model, asked)
    full: PreTrainedModel = model.merge_and_unload() if isinstance(model, PeftModel) else model
    full = full.float()
    if bad := [name for name, value in full.named_parameters() if not bool(torch.isfinite(value).all())]:
        raise MergeError(f"{out}: weights are not finite: {', '.join(bad[:5])}")
    full.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_probe(out, asked, said)
    loaded = _load_again(type(full), out)
    after = _logits(loaded, ids)
    difference = float((before - after).abs().max() / before.abs().max().clamp_min(1.0))
    if not difference <= tolerance:
        raise MergeError(f"{out}: the saved model's logits differ from the trained one's by {difference:.2e}")
    check_probe(loaded, out)
    return loaded
