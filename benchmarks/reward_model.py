"""A pointwise reward model on hh-rlhf: the stage of a generation against a plain TRL ``RewardTrainer``.

Both get the same backbone, the same pairs of the same users in chat format, the same LoRA, learning rate, batch and
number of steps; both models then score the same held-out pairs by the same code, so that the accuracies are paired. The
plain one is what TRL's documentation shows: one row a reply, padded, in a shuffled order.

Run: ``python -m benchmarks.reward_model --pairs shared/data/hh-rlhf/harmless-base-sample.jsonl.gz --base models/base``
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.chat.prompt import prompt_messages
from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.rewards.earlier import gains
from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer
from flywheel_tasks.rewards.pairs import Pair, parse_pairs
from flywheel_tasks.rewards.pointwise import pointwise_margins
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.rewards.standalone import hold_out, read_pair_rows, train_model
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.precision import resolve_dtype, set_threads


def _rows(path: Path, train: int, heldout: int, seed: int) -> list[dict[str, Any]]:
    """So many pairs to train on and to measure on, of different users, drawn by the seed."""
    rows, _ = read_pair_rows(path)
    rows = hold_out(rows, heldout / (train + heldout), seed)
    kept: list[dict[str, Any]] = []
    for purpose, count in (("reward_train", train), ("reward_heldout", heldout)):
        found = [row for row in rows if row["purpose"] == purpose]
        kept += sorted(found, key=lambda row: draw_order(seed, "benchmark", row["pair_id"]))[:count]
    return kept


def _plain_trl(base: Path, pairs: list[Pair], settings: Settings, steps: int, out: Path) -> PointwiseScorer:
    """TRL's own trainer on chat messages; the scorer of its model."""
    section = settings.pointwise_rm
    tokenizer = reward_tokenizer(base)
    limits = Limits("pointwise", section.max_tokens, min(settings.prompt.max_tokens, section.max_tokens))
    rows = []
    for pair in pairs:
        prompt = prompt_messages(tokenizer, pair.card, pair.history, limits.prompt_max_tokens)
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        rows.append(
            {"prompt": prompt}
            | {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        )
    set_seed(settings.seed)
    with suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32, use_safetensors=True
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    arguments = RewardConfig(
        output_dir=str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        max_length=section.max_tokens,
        bf16=resolve_dtype(settings.compute) == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=settings.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=max(1, steps // 5),
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "SEQ_CLS", ["score"]),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    merge_to_full(trainer.model, tokenizer, out / "model", probe=tokenizer("Hello there")["input_ids"])
    limits.save(out / "model")
    return PointwiseScorer(out / "model", compute=settings.compute)


def _cell(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def main(
    pairs: Annotated[Path, typer.Option(help="hh-rlhf lines, or a pairs table.", exists=True)],
    base: Annotated[Path, typer.Option(help="Backbone folder.", exists=True)] = Path("models/base"),
    train: Annotated[int, typer.Option(help="Pairs to train on.")] = 800,
    heldout: Annotated[int, typer.Option(help="Pairs of other users to measure on.")] = 400,
    root: Annotated[Path, typer.Option(help="Folder of params.yaml and dvc.yaml.")] = Path(),
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the setting.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Instead of the setting.")] = None,
) -> None:
    """Train both and print accuracies, their paired difference and the ratio of times."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    changes = {"learning_rate": learning_rate, "max_tokens": max_tokens}
    params["pointwise_rm"] |= {key: value for key, value in changes.items() if value is not None}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        settings = load_settings(work / "params.yaml")
        set_threads(settings.compute)
        rows = _rows(pairs, train, heldout, settings.seed)
        write_rows(rows, PAIRS, work / "pairs.parquet")
        by_purpose = parse_pairs(rows, pairs)
        measured_on = by_purpose["reward_heldout"]
        started = time.perf_counter()
        metrics = train_model(
            "pointwise",
            work / "pairs.parquet",
            work / "ours",
            stage=load_graph(root / "dvc.yaml")["train_pointwise_rm"],
            params=params,
            base=str(base),
            wheels=work / "wheels",
            heldout_share=0.5,
        )
        ours_seconds = time.perf_counter() - started
        steps = metrics["train"]["steps"]
        started = time.perf_counter()
        plain = _plain_trl(base, by_purpose["reward_train"], settings, steps, work / "plain")
        theirs = pointwise_margins(plain, measured_on)
        plain_seconds = time.perf_counter() - started
        ours = pointwise_margins(PointwiseScorer(work / "ours", compute=settings.compute), measured_on)
    found = gains(ours, theirs, measured_on)
    alone = gains(theirs, ours, measured_on)
    print(f"{len(by_purpose['reward_train'])} pairs, {steps} steps, {len(measured_on)} held-out pairs")
    print(f"{'':<28}{'accuracy (95% interval)':<28}seconds to load, train, save and score")
    print(f"{'flywheel rm train':<28}{_cell(alone['accuracy']):<28}{ours_seconds:.1f}")
    print(f"{'plain TRL RewardTrainer':<28}{_cell(found['accuracy']):<28}{plain_seconds:.1f}")
    print(f"difference of accuracies, paired: {_cell(found['accuracy_gain'])}")
    print(f"ratio of times (plain / ours): {plain_seconds / ours_seconds:.2f}")


if __name__ == "__main__":
    typer.run(main)
