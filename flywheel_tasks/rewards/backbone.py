"""Which causal language models can be a reward model, and how: one score read from the decoder's last hidden state.

transformers has a sequence classifier for most types. For the others its own generic one, which is the classifier of
most types too (``GenericForSequenceClassification``), is put on the type's decoder.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from trl.trainer.reward_trainer import suppress_seqcls_warning

from flywheel_tasks.rewards.encoding import RewardModelError, reward_tokenizer
from flywheel_tasks.rewards.packing import Group, PackingError, check_packing

_HEAD = "score.weight"
_TRIED = ("Hello there!", "Ahoy! Come in, the kettle is on.", "Go away.")  # a prompt and two replies


class BackboneError(RuntimeError):
    """A model cannot be a reward model; the message names its folder."""


def classifier_kind(folder: Path) -> type[Any]:
    """What loads a model of a folder as a sequence classifier: an ``AutoModelFor...`` class or a model's own.

    Args:
        folder: of a causal language model, or of a reward model that was made of one.

    Raises:
        BackboneError: the type of model has no decoder of its own that a score could be read from.
    """
    config: Any = type(AutoConfig.from_pretrained(folder))
    if config in AutoModelForSequenceClassification._model_mapping:
        return AutoModelForSequenceClassification
    if config not in MODEL_MAPPING:
        raise BackboneError(f"{folder}: transformers has no decoder for {config.__name__} alone")
    return _classifier_on(MODEL_MAPPING[config], config)


@cache
def _classifier_on(decoder: type[PreTrainedModel], config: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """transformers' generic sequence classifier on a type's decoder, made as transformers makes those it has."""
    family = next(base for base in decoder.__mro__[1:] if issubclass(base, PreTrainedModel))
    own = {"config_class": config, "base_model_prefix": decoder.base_model_prefix, "__module__": __name__}
    name = f"{decoder.__name__.removesuffix('Model')}ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, family), own)


def load_backbone(folder: Path, pad_token_id: int) -> PreTrainedModel:
    """A causal language model as a sequence classifier with one label and a new head, without its lm_head.

    Args:
        folder: of ``save_pretrained``, safetensors only.
        pad_token_id: of :func:`flywheel_tasks.rewards.encoding.reward_tokenizer`.

    Returns:
        the model in float32; its head's first values are drawn from torch's generator.

    Raises:
        BackboneError: it cannot be loaded as one, or weights but the head's are missing.
    """
    try:
        with suppress_seqcls_warning():  # it would print a table about the new head and the lm_head left out
            found: Any = classifier_kind(folder).from_pretrained(
                folder,
                num_labels=1,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (ValueError, TypeError) as error:
        raise BackboneError(f"{folder}: {_first_line(error)}") from error
    model, report = found
    if missing := set(report["missing_keys"]) - {_HEAD}:
        raise BackboneError(f"{folder}: weights are missing: {', '.join(sorted(missing)[:5])}")
    model.config.pad_token_id = pad_token_id
    return model


def head(model: PreTrainedModel) -> torch.Tensor:
    """A copy of the head's weights, [1, hidden size]."""
    return model.get_parameter(_HEAD).detach().clone()


def check_backbone(folder: Path) -> None:
    """Try on a made-up prompt whether a reward model can be trained on a causal language model.

    It costs one loading in float32. Without it a model that cannot is found when people have labelled.

    Args:
        folder: of ``save_pretrained`` with the tokenizer.

    Raises:
        BackboneError: it cannot be loaded as a classifier, its tokenizer has no token left for padding, or it scores
            packed replies otherwise than alone.
    """
    try:
        tokenizer = reward_tokenizer(folder)
        prompt, *replies = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in _TRIED)
        group = Group(prompt, [[*reply, tokenizer.eos_token_id] for reply in replies])
        model = load_backbone(folder, tokenizer.pad_token_id)
        torch.nn.init.normal_(model.get_parameter(_HEAD))  # scores of a new head are too small to differ much
        check_packing(model, group, tokenizer.pad_token_id)
    except BackboneError:
        raise
    except (RewardModelError, PackingError) as error:
        raise BackboneError(str(error)) from error
    except Exception as error:  # whatever its code stumbles over
        raise BackboneError(f"{folder}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
