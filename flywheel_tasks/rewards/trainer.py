"""Training of both reward models: TRL's RewardTrainer on packed rows, LoRA and a fully trained head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.rewards.backbone import head, load_backbone
from flywheel_tasks.rewards.encoding import Limits
from flywheel_tasks.rewards.packing import Group, check_packing, pack, packed_scores
from flywheel_tasks.settings import PreferenceModel
from flywheel_tasks.training.endings import Completion, check_endings
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.order import batched, keep_apart, training_order, whole_steps
from flywheel_tasks.training.precision import set_threads
from flywheel_tasks.training.run import train, trainer_arguments

CURVE = ("loss", "accuracy", "margin", "grad_norm", "learning_rate")


@dataclass(frozen=True)
class Row:
    """One comparison to learn from: score(better) > score(worse), both continuations of one prompt."""

    pair_id: str
    prompt: tuple[int, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]


class PackRows:
    """Collator: rows that share a prompt become one packed sequence; a repeated continuation is scored once.

    All comparisons of one prompt in one batch element is how InstructGPT trains its reward model (Ouyang et
    al. 2022, arXiv 2203.02155, section 3.5).
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """A packed batch, and for each comparison the index of its two scores."""
        prompts: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
        for example in examples:
            continuations = prompts.setdefault(tuple(example["prompt_ids"]), {})
            for side in ("chosen_ids", "rejected_ids"):
                continuations.setdefault(tuple(example[side]), 0)
        index = 0
        for continuations in prompts.values():
            for key in continuations:
                continuations[key] = index
                index += 1
        batch = pack([Group(prompt, list(found)) for prompt, found in prompts.items()], self._pad_token_id)
        for side in ("chosen_ids", "rejected_ids"):
            batch[side] = torch.tensor([prompts[tuple(e["prompt_ids"])][tuple(e[side])] for e in examples])
        batch["attention_mask"] = (batch["segments"] >= 0).long()
        return batch


class PackedRewardTrainer(RewardTrainer):
    """TRL's trainer with its loss, -log sigmoid(better - worse), on packed rows."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss and metrics; only how scores are computed differs."""

        def scored(**batch: Any) -> SequenceClassifierOutput:
            scores = packed_scores(model, batch)
            sides = torch.cat([scores[batch["chosen_ids"]], scores[batch["rejected_ids"]]])
            return SequenceClassifierOutput(logits=sides[:, None])

        return super().compute_loss(scored, inputs, return_outputs, num_items_in_batch)


def _ordered(rows: Sequence[Row], batch_size: int, epochs: float, seed: int) -> list[Row]:
    """Rows in training order: those of one prompt beside each other, prompts of like length in one batch.

    Where one pass over the prompts ends and the next begins, a batch may get a row of both: then the later gives way.
    The last batch is filled up (:func:`~flywheel_tasks.training.order.whole_steps`).
    """
    prompts: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        prompts.setdefault(row.prompt, []).append(row)
    grouped = list(prompts.values())
    lengths = [
        len(group[0].prompt) + sum(map(len, {side for row in group for side in (row.better, row.worse)}))
        for group in grouped
    ]
    per_batch = max(1, round(batch_size * len(grouped) / len(rows)))
    order = training_order(lengths, per_batch, epochs, seed)
    batches = list(batched([row for index in order for row in grouped[index]], batch_size))
    keep_apart(batches, lambda row: row.pair_id)
    return whole_steps(list(chain.from_iterable(batches)), batch_size, lambda row: row.pair_id)


def _check_ends(name: str, rows: Sequence[Row], end_id: int) -> None:
    """A score is read at the end token, so no side may be without; a cut one keeps it."""
    sides = (
        Completion(f"{name}: pair {row.pair_id}, {side}", ids[-1:], len(row.prompt) + len(ids))
        for row in rows
        for side, ids in (("chosen", row.better), ("rejected", row.worse))
    )
    check_endings(sides, frozenset([end_id]), None)


def _longest_group(rows: Sequence[Row]) -> Group:
    row = max(rows, key=lambda row: len(row.prompt))
    return Group(row.prompt, [row.worse, row.better])


@dataclass(frozen=True)
class Trained:
    """What a reward model's training did: metrics of the run, and how far the head is from where it began."""

    metrics: dict[str, Any]
    head_moved: float


def train_rows(
    io: StageIO,
    section: PreferenceModel,
    rows: Sequence[Row],
    limits: Limits,
    *,
    start: Path,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    curve: Path,
) -> Trained:
    """Train on comparisons and save the merged model.

    Args:
        io: the stage.
        section: its settings.
        rows: comparisons, at least one.
        limits: saved as ``scorer.json``.
        start: folder of the weights to start from, a policy's or a reward model's.
        tokenizer: from :func:`flywheel_tasks.rewards.encoding.reward_tokenizer`.
        out: folder for the model.
        curve: CSV for the training curve.

    Raises:
        TrainingError: a reply does not end in the end token, or see :func:`flywheel_tasks.training.run.train`.
    """
    _check_ends(io.stage.name, rows, tokenizer.eos_token_id)
    set_threads(io.settings.compute)
    set_seed(io.settings.seed)  # a new head's first values depend on the seed
    model = load_backbone(start, tokenizer.pad_token_id)
    before = head(model)
    check_packing(model, _longest_group(rows), tokenizer.pad_token_id)
    ordered = _ordered(rows, section.batch_size, section.epochs, io.settings.seed)
    dataset = Dataset.from_list(
        [
            {"prompt_ids": list(r.prompt), "chosen_ids": list(r.better), "rejected_ids": list(r.worse)}
            for r in ordered
        ]
    )
    steps = len(ordered) // section.batch_size
    arguments = RewardConfig(
        **trainer_arguments(io, section.learning_rate, section.batch_size, steps),
        max_length=None,  # longer rows would be dropped silently; encoding has cut them already
        remove_unused_columns=False,
    )
    trainer = PackedRewardTrainer(
        model=model,
        args=arguments,
        data_collator=PackRows(tokenizer.pad_token_id),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "SEQ_CLS", ["score"]) if section.lora else None,
    )
    lowest = next(name for name, _ in model.named_parameters())
    moves = ("score", "lora_B" if section.lora else lowest)
    longest = max(len(row.prompt) + len(row.better) + len(row.worse) for row in rows)
    metrics = train(trainer, io, curve=curve, columns=CURVE, longest_row=longest, must_move=moves)
    online = [entry["accuracy"] for entry in trainer.state.log_history if "accuracy" in entry]
    probe = [*rows[0].prompt, *rows[0].better]
    assert isinstance(trainer.model, PeftModel | PreTrainedModel)
    loaded = merge_to_full(trainer.model, tokenizer, out, probe=probe)
    limits.save(out)
    moved = float((head(loaded) - before).norm())
    # Each batch's accuracy is logged before the step that learns from it.
    return Trained(metrics | {"accuracy_before_step": sum(online) / len(online)}, head_moved=moved)
