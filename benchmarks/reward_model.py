"""A pointwise reward model on hh-rlhf: the stage of a generation against a plain TRL ``RewardTrainer``.

Both get the same backbone, the same first head, the token ids of the same pairs, the same LoRA, learning rate, batch
and number of steps; both models then score the same held-out pairs of other users by the same code, so that the
accuracies are paired. What differs is what is compared: the plain one has a row a reply, padded and shuffled, as
TRL's documentation shows; ours has packed rows in batches of like length, and its own loop around the trainer.

The seed of the training is ``--seed``; which pairs are trained on and measured on is always the same draw, so that
seeds can be put together: the last lines are of all seeds in ``--folder``. A seed that is there is not trained again,
and one that was killed goes on with the side that it had not finished (ours from its last checkpoint).

Run: ``python -m benchmarks.reward_model --pairs shared/data/hh-rlhf/harmless-base-sample.jsonl.gz --base models/base``
"""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.curation.sampling import draw_order
from flywheel_tasks.evaluation.intervals import Estimate, share
from flywheel_tasks.pipeline.graph import load_graph
from flywheel_tasks.rewards.agreement import preferred
from flywheel_tasks.rewards.calibration import over_users
from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer
from flywheel_tasks.rewards.pairs import Pair, parse_pairs
from flywheel_tasks.rewards.pointwise import encode_pair, pointwise_margins
from flywheel_tasks.rewards.recipe import rows_of
from flywheel_tasks.rewards.scoring import PointwiseScorer
from flywheel_tasks.rewards.standalone import hold_out, read_pair_rows, train_model
from flywheel_tasks.settings import Settings, load_settings
from flywheel_tasks.storage.digests import file_digest, tree_digest
from flywheel_tasks.storage.documents import write_json
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.training.lora import lora_config, merge_to_full
from flywheel_tasks.training.precision import resolve_dtype, set_threads
from flywheel_tasks.training.run import warmup_steps, without_autocast

_DRAW = 1  # seed of the draw of pairs, the same for all seeds of training


def draw(path: Path, train: int, heldout: int) -> list[dict[str, Any]]:
    """So many pairs to train on and to measure on, of different users."""
    rows, _ = read_pair_rows(path)
    rows = hold_out(rows, heldout / (train + heldout), _DRAW)
    kept: list[dict[str, Any]] = []
    for purpose, count in (("reward_train", train), ("reward_heldout", heldout)):
        found = [row for row in rows if row["purpose"] == purpose]
        if len(found) < count:
            raise typer.BadParameter(f"{path}: {len(found)} pairs for {purpose}, {count} are asked for")
        kept += sorted(found, key=lambda row: draw_order(_DRAW, "benchmark", row["pair_id"]))[:count]
    return kept


def plain_arguments(settings: Settings, steps: int, out: Path) -> RewardConfig:
    """TRL's arguments with our rate, batch and schedule; the rest is TRL's own default."""
    section = settings.pointwise_rm
    return RewardConfig(
        output_dir=str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps(steps),
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


def train_plain(base: Path, pairs: list[Pair], settings: Settings, steps: int, out: Path) -> PointwiseScorer:
    """TRL's own trainer on the token ids that our stage trains on; the scorer of its model."""
    section = settings.pointwise_rm
    tokenizer = reward_tokenizer(base)
    limits = Limits("pointwise", section.max_tokens, min(settings.prompt.max_tokens, section.max_tokens))
    rows, _ = rows_of(encode_pair, tokenizer, pairs, limits)
    data = [
        {"chosen_ids": [*row.prompt, *row.better], "rejected_ids": [*row.prompt, *row.worse]} for row in rows
    ]
    set_seed(settings.seed)
    with suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=torch.float32, use_safetensors=True
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=model,
        args=plain_arguments(settings, steps, out),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=lora_config(section.lora, model.config, "SEQ_CLS", ["score"]) if section.lora else None,
    )
    kept: Any = trainer.train_dataset
    if len(kept) != len(data):
        raise RuntimeError(f"TRL has dropped {len(data) - len(kept)} rows as too long")
    trainer.train()
    without_autocast(trainer)
    assert isinstance(trainer.model, PeftModel)
    merge_to_full(trainer.model, tokenizer, out / "model", probe=data[0]["chosen_ids"])
    limits.save(out / "model")
    return PointwiseScorer(out / "model", compute=settings.compute)


@dataclass(frozen=True)
class Work:
    """What one seed needs."""

    seed: int
    folder: Path
    params: dict[str, Any]
    base: Path
    root: Path
    pairs: dict[str, list[Pair]]

    def settings(self) -> Settings:
        """With the seed."""
        path = self.folder / f"params-{self.seed}.yaml"
        path.write_text(yaml.safe_dump(self.params), encoding="utf-8")
        return load_settings(path, alone=True)

    def side(self, name: str, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """What a side gave: read, or made now and kept."""
        path = self.folder / f"seed-{self.seed}-{name}.json"
        if not path.exists():
            write_json(run(self.folder / f"{name}-{self.seed}"), path)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def ours(self, out: Path) -> dict[str, Any]:
        """Train by the stage, and measure."""
        settings = self.settings()
        set_threads(settings.compute)
        started = time.perf_counter()
        if not out.exists():
            metrics = train_model(
                "pointwise",
                self.folder / "pairs.parquet",
                out,
                stage=load_graph(self.root / "dvc.yaml")["train_pointwise_rm"],
                params=self.params,
                base=str(self.base),
                wheels=self.folder / "wheels",
                heldout_share=0.5,
            )
        else:
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        seconds = time.perf_counter() - started
        margins = pointwise_margins(
            PointwiseScorer(out, compute=settings.compute), self.pairs["reward_heldout"]
        )
        return {"margins": margins, "seconds": seconds, "steps": metrics["train"]["steps"]}

    def plain(self, out: Path, steps: int) -> dict[str, Any]:
        """Train by TRL, and measure."""
        settings = self.settings()
        set_threads(settings.compute)
        started = time.perf_counter()
        scorer = train_plain(self.base, self.pairs["reward_train"], settings, steps, out)
        margins = pointwise_margins(scorer, self.pairs["reward_heldout"])
        return {"margins": margins, "seconds": time.perf_counter() - started, "steps": steps}


def difference(ours: list[list[float]], plain: list[list[float]], users: list[str]) -> Estimate:
    """Accuracy of ours minus that of the plain one, mean over seeds, pair by pair.

    Args:
        ours: margins by seed and pair.
        plain: the same.
        users: of each pair; the 95% interval is a bootstrap that draws whole users. It is the noise of the held-out
            pairs; that of training shows in how far seeds lie apart.
    """
    gained = np.mean(
        [np.subtract(preferred(a), preferred(b)) for a, b in zip(ours, plain, strict=True)], axis=0
    )
    return over_users(lambda rows: float(gained[rows].mean()), users, seed=0)


def cell(estimate: Any, sign: str = "") -> str:
    """A value and its interval; ``sign`` is ``+`` for a difference."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.3f}" + (f" ({low:{sign}.3f} to {high:{sign}.3f})" if low is not None else "")


def _same_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Results of other data, settings or releases in the folder would be mixed with these."""
    path = folder / "facts.json"
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != facts:
        odd = sorted(key for key in facts.keys() | found.keys() if facts.get(key) != found.get(key))
        raise typer.BadParameter(f"{folder} holds results with another {', '.join(odd)}; take another folder")
    write_json(facts, path)


def report(folder: Path, pairs: list[Pair]) -> None:
    """All seeds of a folder."""
    users = [pair.user_id for pair in pairs]
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    print(f"{'seed':<6}{'flywheel rm train':<26}{'plain RewardTrainer':<26}{'difference, paired':<28}seconds")
    for path in sorted(folder.glob("seed-*-plain.json")):
        seed = path.name.split("-")[1]
        found = {
            name: json.loads((folder / f"seed-{seed}-{name}.json").read_text(encoding="utf-8"))
            for name in sides
        }
        for name, side in found.items():
            sides[name].append(side)
        cells = [cell(share(preferred(side["margins"]), users)) for side in found.values()]
        gain = cell(difference([found["ours"]["margins"]], [found["plain"]["margins"]], users), "+")
        seconds = f"{found['ours']['seconds']:.0f} and {found['plain']['seconds']:.0f}"
        print(f"{seed:<6}{cells[0]:<26}{cells[1]:<26}{gain:<28}{seconds}")
    margins = {name: [side["margins"] for side in found] for name, found in sides.items()}
    means = {
        name: np.mean([np.mean(preferred(seed)) for seed in by_seed]) for name, by_seed in margins.items()
    }
    ratio = sum(side["seconds"] for side in sides["plain"]) / sum(side["seconds"] for side in sides["ours"])
    print(f"mean of {len(sides['plain'])} seeds: ours {means['ours']:.3f}, plain {means['plain']:.3f}")
    print(f"difference of accuracies: {cell(difference(margins['ours'], margins['plain'], users), '+')}")
    print(f"ratio of times (plain / ours; load, train, save and score): {ratio:.2f}")


def main(
    pairs: Annotated[Path, typer.Option(help="hh-rlhf lines, or a pairs table.", exists=True)],
    base: Annotated[Path, typer.Option(help="Backbone folder.", exists=True)] = Path("models/base"),
    train: Annotated[int, typer.Option(help="Pairs to train on.")] = 640,
    heldout: Annotated[int, typer.Option(help="Pairs of other users to measure on.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the training of both.")] = 1,
    only_ours: Annotated[
        bool, typer.Option("--only-ours", help="Leave the plain one to a later call.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps results by seed; without one only this seed counts.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder of params.yaml and dvc.yaml.")] = Path(),
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the setting.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Instead of the setting.")] = None,
) -> None:
    """Train both, and print accuracies, their paired difference and the ratio of times."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    changes = {"learning_rate": learning_rate, "max_tokens": max_tokens}
    params["pointwise_rm"] |= {key: value for key, value in changes.items() if value is not None}
    params["seed"] = seed
    place: Any = nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory()
    with place as kept:
        home = Path(kept)
        home.mkdir(parents=True, exist_ok=True)
        rows = draw(pairs, train, heldout)
        by_purpose = parse_pairs(rows, pairs)
        facts = {
            "pairs": {"file": file_digest(pairs), "train": train, "heldout": heldout},
            "base": tree_digest(base),
            "settings": {name: params[name] for name in ("pointwise_rm", "prompt", "compute")},
            "releases": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        }
        _same_facts(home, facts)
        write_rows(rows, PAIRS, home / "pairs.parquet")
        work = Work(seed, home, params, base, root, by_purpose)
        steps = work.side("ours", work.ours)["steps"]
        if only_ours:
            print(f"seed {seed}: ours is in {home}; call again without --only-ours for the plain one")
            return
        work.side("plain", lambda out: work.plain(out, steps))
        print(
            f"{len(by_purpose['reward_train'])} pairs, {steps} steps, {len(by_purpose['reward_heldout'])} held out"
        )
        report(home, by_purpose["reward_heldout"])


if __name__ == "__main__":
    typer.run(main)
