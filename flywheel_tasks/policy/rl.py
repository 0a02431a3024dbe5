"""Stage ``rl``: online reinforcement learning (GRPO or online DPO) against the pointwise reward model.

Prompts are single turns of fresh traffic with a low mean or a high spread of reward; what was
gained is measured on held-out prompts of other users.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from flywheel_tasks.chat.prompt import prompt_ids, prompt_messages
from flywheel_tasks.evaluation.chat_templates import mine_chats
from flywheel_tasks.evaluation.templates import Pattern, Template, distinct
from flywheel_tasks.pipeline.launcher import main_first
from flywheel_tasks.pipeline.stage_io import StageIO
from flywheel_tasks.policy.checks import CHECKS, Check, write_checks
from flywheel_tasks.policy.drift import DriftWatch
from flywheel_tasks.policy.heldout import HELDOUT, SIDE, measure, paired_gain
from flywheel_tasks.policy.prompts import Prompt, choose, load_split
from flywheel_tasks.policy.reward_parts import Rewards, auxiliary_terms
from flywheel_tasks.policy.rl_trainer import check_rollouts, curve_columns, make_trainer
from flywheel_tasks.policy.safe_start import Start, find_start
from flywheel_tasks.policy.safe_steps import SafeSteps
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.policy.selection import SELECTION, select
from flywheel_tasks.rewards.scoring import PairwiseScorer, PointwiseScorer
from flywheel_tasks.storage.tables import read_rows, write_rows
from flywheel_tasks.training.lora import merge_to_full
from flywheel_tasks.training.order import training_order
from flywheel_tasks.training.probe import load_model
from flywheel_tasks.training.run import train

Row = dict[str, Any]


def _seed(io: StageIO, purpose: int) -> int:
    return int(np.random.SeedSequence([io.settings.seed, purpose]).generate_state(1)[0])


def _kept(path: Path, schema: pa.Schema, make: Callable[[], list[Row]]) -> list[Row]:
    """Rows that a killed run of the very same inputs already made, or new ones."""
    with main_first():
        if not path.exists():
            write_rows(make(), schema, path)
    return read_rows(path)


def _sampler(io: StageIO, folder: Path) -> Sampler:
    return Sampler(
        folder,
        sampling=io.settings.sampling,
        compute=io.settings.compute,
        max_prompt_tokens=io.settings.prompt.max_tokens,
    )


def _select(io: StageIO, sampler: Sampler, scorer: PointwiseScorer, prompts: Sequence[Prompt]) -> list[Row]:
    """Sample every prompt and choose: rows of ``selection.parquet``."""
    section = io.settings.rl
    drawn = sampler.sample(
        [prompt.chat for prompt in prompts],
        section.group_size,
        _seed(io, 4),
        progress="rl: replies to select by",
    )
    rows = [
        (*prompt.chat, reply) for prompt, replies in zip(prompts, drawn, strict=True) for reply in replies
    ]
    rewards = np.array(scorer.score(rows)).reshape(len(prompts), section.group_size).tolist()
    ids = [prompt.prompt_id for prompt in prompts]
    return [asdict(one) for one in select(ids, rewards, section.select_share)]


def _dataset(
    io: StageIO, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> tuple[Dataset, list[int]]:
    """Prompts of all steps, in order, so that a resumed run goes on with the right ones.

    Returns:
        the dataset (``prompt`` as messages, ``index`` into the prompts), and one prompt's token ids.
    """
    section, limit = io.settings.rl, io.settings.prompt.max_tokens
    ids = [prompt_ids(tokenizer, *prompt.chat, limit) for prompt in prompts]
    needed = section.steps * section.prompts_per_step
    order = training_order(
        [len(row) for row in ids], section.prompts_per_step, needed / len(prompts), io.settings.seed
    )
    rows = [
        {"prompt": prompt_messages(tokenizer, *prompts[index].chat, limit), "index": index}
        for index in order[:needed]
    ]
    return Dataset.from_list(rows), ids[0]


def _start(io: StageIO, scorer: PointwiseScorer, prompts: Sequence[Prompt]) -> tuple[Start, list[Row]]:
    """The policy that RL starts from, and the champion's replies to the held-out prompts."""
    seed, resume, samples = _seed(io, 5), io.resume_dir(), io.settings.rl.heldout_samples

    def replies(folder: Path, name: str, label: str) -> list[Row]:
        return _kept(
            resume / f"{name}.parquet",
            SIDE,
            lambda: measure(_sampler(io, folder), scorer, prompts, samples, seed, f"rl: {label}"),
        )

    champion = replies(io.dep("inputs/champion"), "champion", "the champion's held-out replies")
    start = find_start(
        io.dep("inputs/champion"),
        io.dep("models/policy_dpo"),
        io.settings.rl.start_win_rate,
        lambda folder, share: replies(
            folder, f"start-{share:g}", f"held-out replies, {share:.1%} of the way from the champion"
        ),
        champion,
        resume,
    )
    return start, champion


def _safe_steps(
    io: StageIO,
    scorer: PointwiseScorer,
    sampler: Sampler,
    before: list[Row],
    champion: list[Row],
    prompts: Sequence[Prompt],
) -> SafeSteps:
    """The checks of this run; the first is of the policy before RL, the sampler's, whose replies are there already."""
    settings, seed = io.settings, _seed(io, 5)

    def replies(model: Any, step: int) -> list[Row]:
        if step == 0:
            return before
        drawing = Sampler.from_model(
            model, sampler.tokenizer, sampling=settings.sampling, max_prompt_tokens=settings.prompt.max_tokens
        )
        label = f"rl: held-out replies after step {step}"
        return measure(drawing, scorer, prompts, settings.rl.heldout_samples, seed, label)

    steps = SafeSteps(
        io.resume_dir(),
        every=settings.rl.check_every,
        steps=settings.rl.steps,
        prompts=prompts,
        judged=settings.rl.judge_prompts,
        champion=champion,
        judge=PairwiseScorer(io.dep("models/pairwise_rm"), compute=settings.compute),
        measure=replies,
    )
    steps.check(0, sampler.model)
    return steps


def _train(
    io: StageIO,
    scorer: PointwiseScorer,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    unit: float,
    safe: SafeSteps,
    start: Path,
    templates: Mapping[Pattern, Template],
) -> tuple[dict[str, Any], Check]:
    """RL from the policy before it; the chosen checkpoint, merged, is saved as the stage's output.

    Args:
        io: the stage.
        scorer: gives the reward.
        sampler: of the policy before RL.
        prompts: to train on.
        unit: what a penalty of 1 takes away.
        safe: measures checkpoints, and chooses.
        start: folder of the policy before RL.
        templates: what that policy says again and again.
    """
    section, tokenizer = io.settings.rl, sampler.tokenizer
    dataset, probe = _dataset(io, tokenizer, prompts)
    model = load_model(AutoModelForCausalLM, start, torch.float32, local_files_only=True)
    terms = auxiliary_terms(io)
    rewards = Rewards(scorer, prompts, section, unit, sampler.end_ids, sampler.decode, terms, templates)
    watch = DriftWatch(io.resume_dir(), section.watch)
    trainer = make_trainer(
        io, model=model, tokenizer=tokenizer, dataset=dataset, rewards=rewards, callbacks=[safe, watch]
    )
    watch.measure = trainer.drift
    trained = train(
        trainer,
        io,
        curve=io.out("plots/rl.csv"),
        columns=curve_columns(section, rewards),
        longest_row=io.settings.prompt.max_tokens + io.settings.sampling.max_new_tokens,
        must_move=("lora_B",),
        stopped_at=lambda: safe.stopped_at() or watch.stopped_at(),
    )
    within = watch.before(section.steps)
    chosen = safe.chosen(section.target_win_rate, before=within, hand_over=section.hand_over)
    assert isinstance(trainer.model, PeftModel)
    safe.restore(trainer.model, chosen.step)
    merge_to_full(trainer.model, tokenizer, io.out("models/policy"), probe=probe)
    drift = watch.summary(trainer.state.log_history)
    left_out = sorted(set(section.auxiliary) - set(terms))
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    cut = float(np.mean([entry["completions/clipped_ratio"] for entry in steps]))
    about = {
        "method": section.method,
        "cut_share": cut,
        "drift": drift,
        "auxiliary_left_out": left_out,
        "templates_before": len(distinct(templates.values())),
    }
    return trained | about, chosen


def _heldout_rows(before: Check, after: Check, prompts: Mapping[str, Prompt]) -> list[Row]:
    return [
        {
            "prompt_id": old["prompt_id"],
            "sample": old["sample"],
            "source": prompts[old["prompt_id"]].source,
            "before_reply": old["reply"],
            "before_reward": old["reward"],
            "after_reply": new["reply"],
            "after_reward": new["reward"],
        }
        for old, new in zip(before.rows, after.rows, strict=True)
    ]


def run(io: StageIO) -> Mapping[str, Any]:
    """Select prompts, train, and hand over the checkpoint that climbed a safe distance on held-out prompts.

    Raises:
        PromptError: a split breaks a rule.
        RolloutError: see :func:`flywheel_tasks.policy.rl_trainer.check_rollouts`.
        TrainingError: see :func:`flywheel_tasks.training.run.train`.
    """
    section, seed, resume = io.settings.rl, io.settings.seed, io.resume_dir()
    check_rollouts(section)
    cards = io.dep("data/curated/cards.parquet")
    pool = choose(
        load_split(io.dep("data/split/policy_train.parquet"), cards),
        section.select_from,
        seed,
        "rl selection",
    )
    heldout = choose(
        load_split(io.dep("data/split/policy_heldout.parquet"), cards),
        section.heldout_prompts,
        seed,
        "rl heldout",
    )
    scorer = PointwiseScorer(io.dep("models/pointwise_rm"), compute=io.settings.compute)
    start, champion = _start(io, scorer, heldout)
    sampler = _sampler(io, start.folder)
    selection = _kept(resume / "selection.parquet", SELECTION, lambda: _select(io, sampler, scorer, pool))
    safe = _safe_steps(io, scorer, sampler, start.rows, champion, heldout)
    selected = {row["prompt_id"] for row in selection if row["selected"]}
    # A reward model's scale is its own: penalties are counted in its spread between replies to one prompt.
    unit = float(np.mean([row["reward_std"] for row in selection]))
    prompts = [prompt for prompt in pool if prompt.prompt_id in selected]
    asked = {prompt.prompt_id: prompt for prompt in heldout}
    said = [(asked[row["prompt_id"]], row["reply"]) for row in start.rows]
    templates = mine_chats((prompt.conversation, *prompt.chat, reply) for prompt, reply in said).templates
    trained, chosen = _train(io, scorer, sampler, prompts, unit, safe, start.folder, templates)
    checks = safe.checks()
    folder = io.out("data/rl")
    folder.mkdir(parents=True)
    write_rows(selection, SELECTION, folder / "selection.parquet")
    write_rows(_heldout_rows(checks[0], chosen, asked), HELDOUT, folder / "heldout.parquet")
    write_rows([row for check in checks for row in check.rows], CHECKS, folder / "checks.parquet")
    write_checks(checks, io.out("plots/rl_checks.csv"))
    # The last step shows what training did, also where a checkpoint before it was handed over.
    sides = {"before": checks[0], "after": chosen, "last": checks[-1]}
    ids, rewards = [row["prompt_id"] for row in checks[0].rows], checks[0].values("reward")
    users = checks[0].users
    return {
        "selection": {
            "sampled": len(selection),
            "mean_reward_std": unit,
            "mean_reward": float(np.mean([row["mean_reward"] for row in selection])),
            **dict(sorted(Counter(row["reason"] for row in selection).items())),
        },
        "train": trained,
        "checkpoint": {
            "start_share": start.share,
            "step": chosen.step,
            "last_step": checks[-1].step,
            "stopped_early": safe.stopped_at() is not None or trained["drift"]["stopped"] is not None,
            "win_rate": chosen.mean("win"),
            "expected_win_rate": chosen.expected_win_rate(),
            "target_win_rate": section.target_win_rate,
            "hand_over": section.hand_over,
        },
        "judge_stop": safe.judge_stop(),
        "heldout": {
            **{f"{key}_{side}": value for side, one in sides.items() for key, value in one.summary().items()},
            "reward_gain": paired_gain(rewards, chosen.values("reward"), ids, users),
            "reward_gain_last": paired_gain(rewards, checks[-1].values("reward"), ids, users),
        },
    }
