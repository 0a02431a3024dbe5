"""Stage ``sft``: supervised fine-tuning on accepted replies and rewrites; only replies are learned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from flywheel_tasks.chat.fixed_date import dated_tokenizer
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.compact_head import vocabulary_at_labels
from flywheel_tasks.policy.mixture import mix
from flywheel_tasks.policy.named_sets import load_sets
from flywheel_tasks.policy.sft_data import (
    IGNORED,
    Example,
    cut_short_by_replies,
    encode,
    lengths,
    load_examples,
)
from flywheel_tasks.settings import TRAFFIC
from flywheel_tasks.training.endings import check_trainer
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.order import training_order, whole_steps
from flywheel_tasks.training.precision import set_threads
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.run import train, trainer_arguments

CURVE = ("loss", "mean_token_accuracy", "entropy", "grad_norm", "learning_rate")


def _mixture(io: StageIO) -> tuple[list[Example], dict[str, Any]]:
    """This generation's rows and the named sets, in the shares of the settings."""
    section = io.settings.sft
    sources: dict[str, list[Example]] = {name: [] for name in TRAFFIC}
    for example in load_examples(
        io.dep("data/rejection/accepted.parquet"), io.dep("data/preferences/rewrites.parquet")
    ):
        sources[example.mix].append(example)
    return mix(
        sources | load_sets(io.dep("sets"), section.sets, io.settings.privacy),
        section.mixture,
        max_repeats=section.max_repeats,
        on_missing=section.on_missing,
        seed=io.settings.seed,
    )


def run(io: StageIO) -> Mapping[str, Any]:
    """Train the champion on the mixture and save the merged model.

    Raises:
        PromptError: a table breaks a rule, or there is nothing to learn from.
        TrainingError: a reply that was not cut does not end in the end token (see
            :mod:`flywheel_tasks.training.endings`), or see :func:`flywheel_tasks.training.run.train`.
    """
    section, settings = io.settings.sft, io.settings
    set_threads(settings.compute)
    examples, account = _mixture(io)
    champion = io.dep("inputs/champion")
    tokenizer = dated_tokenizer(champion)
    short = cut_short_by_replies(
        tokenizer,
        (((one.mix, one.prompt.prompt_id), one.prompt.chat, [one.reply]) for one in examples),
        settings.prompt.max_tokens,
        section.max_tokens,
        "sft",
    )
    rows = [encode(tokenizer, one, settings.prompt.max_tokens, section.max_tokens) for one in examples]
    names = [tuple(row["input_ids"]) for row in rows]
    order = training_order(lengths(rows), section.batch_size, section.epochs, settings.seed, names)
    order = whole_steps(order, section.batch_size, names.__getitem__)
    steps = len(order) // section.batch_size
    arguments = SFTConfig(
        **trainer_arguments(io, section.learning_rate, section.batch_size, steps),
        max_length=None,  # encoding has cut the rows; a cut here could take the end token
    )
    model = load_model(AutoModelForCausalLM, champion, torch.float32, local_files_only=True)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "CAUSAL_LM"),
    )
    called = [f"sft: {examples[index].mix} of prompt {examples[index].prompt.prompt_id}" for index in order]
    endings = check_trainer(trainer, called, tokenizer.eos_token_id, section.max_tokens)
    with vocabulary_at_labels():
        trained = train(
            trainer,
            io,
            curve=io.out("plots/sft.csv"),
            columns=CURVE,
            longest_row=max(lengths(rows)),
            must_move=("lora_B",),
        )
    assert isinstance(trainer.model, PeftModel)
    merge_to_full(trainer.model, tokenizer, io.out("models/policy_sft"), probe=rows[0]["input_ids"])
    return {
        "rows": len(examples),
        "cut_short": short,
        "mixture": account,
        "mean_completion_tokens": float(np.mean([_learned(row) for row in rows])),
        "train": trained | endings,
    }


def _learned(row: Mapping[str, list[int]]) -> int:
    return sum(label != IGNORED for label in row["labels"])
