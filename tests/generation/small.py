"""A generation small enough for a test: the real graph, stages and trainers, on random tiny models."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flywheel_tasks.pipeline import runner

# The tiny model says nothing of sense, so limits that judge sense are opened; the rules themselves still run.
OPEN_RULES: dict[str, Any] = {
    "rules": [
        {"metric": "evaluate.win_rate.pointwise.user", "block": {"min": 0.0, "max": 1.0}},
        {"metric": "evaluate.win_rate.pairwise.user", "block": {"min": 0.0, "max": 1.0}},
        {"metric": "evaluate.production.false_refusal.candidate", "block": {"max": 1.0}},
        {"metric": "train_pointwise_rm.heldout.accuracy.value", "block": {"min": 0.0}},
    ],
    "overfitting": {"high": 1.01, "target": 1.0, "internal_low": 0.0, "gap": 1.0, "wide_gap": 1.0},
    "style": {"warn_effect": 90.0, "block_effect": 99.0, "reward_effect": 99.0},
}
# No model reaches this: the gate must block.
CLOSED_RULES = {
    **OPEN_RULES,
    "rules": [*OPEN_RULES["rules"], {"metric": "evaluate.win_rate.pointwise.user", "block": {"min": 1.01}}],
}


def small_settings(models: Path) -> dict[str, Any]:
    """Overrides of params.yaml."""
    lora = {"rank": 4, "alpha": 8, "layers": 2}
    return {
        "base.policy": str(models / "talker"),
        "base.embedder": str(models / "embedder"),
        "prompt.max_tokens": 120,
        "sampling.max_new_tokens": 10,
        "rl.length_limit": 10,
        "simulation.users": 60,
        "simulation.internal_share": 0.4,  # enough users in each arm that not all of them are active
        "simulation.turns": 2,
        "simulation.days": 3,
        "curate.duplicate_cosine": 1.0,
        "split.max_evaluation_cosine": 1.0,  # all is alike to the tiny embedder
        "annotation_batch.candidates": 3,
        "annotation_batch.max_reward_train": 12,
        "annotation_batch.max_reward_heldout": 6,
        "annotation_batch.max_policy": 6,
        "annotation_batch.max_rewrite": 2,
        "annotate.max_length_ratio": 20.0,
        "annotate.max_emoji_difference": 20,
        "pointwise_rm.lora": lora,
        "pointwise_rm.max_tokens": 160,
        "pairwise_rm.lora": lora,
        "pairwise_rm.max_pairs": 8,
        "pairwise_rm.batch_size": 2,
        "rejection_sample.prompts": 6,
        "rejection_sample.candidates": 2,
        "sft.lora": lora,
        "sft.batch_size": 2,
        "sft.max_repeats": 12,  # so few replies are accepted that exact shares repeat them
        "dpo.lora": lora,
        "dpo.pairs": {"preferences": 4, "safety": 2},
        "dpo.batch_size": 2,
        "rl.steps": 2,
        "rl.prompts_per_step": 2,
        "rl.group_size": 2,
        "rl.select_from": 6,
        "rl.heldout_prompts": 4,
        "rl.learning_rate": 2.5e-4,
        "rl.lora": lora,
        "evaluate.prompts": 8,
        "ab.duration_minutes": 0.05,
        "ab.min_users_per_arm": 1,
        "launch.traffic_share": 0.5,
        # A handful of people who talk to random models: one arm may be significantly worse by chance.
        "ab.alpha": 1e-9,
        "ab.guardrail_alpha": 1e-9,
        "airflow.retries": 0,
        "airflow.schedule": None,  # a run of its own would take the only place
    }


def write_gate_rules(root: Path, rules: dict[str, Any]) -> None:
    """Give a workspace gate rules of its own."""
    (root / "gate_rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")


def make_repository(root: Path, make_workspace: Callable[..., Path], settings: dict[str, Any]) -> Path:
    """A git and DVC repository in ``root`` with a remote beside it, as a team would have."""
    make_workspace(root, settings)
    write_gate_rules(root, OPEN_RULES)
    shutil.copy(Path(__file__).resolve().parents[2] / ".gitignore", root / ".gitignore")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "init", "-q"], cwd=root, check=True)
    runner.dvc(root, "init", "-q", quiet=True)
    runner.dvc(
        root, "remote", "add", "-q", "-d", "storage", str(root.parent / f"{root.name}-remote"), quiet=True
    )
    subprocess.run([*git, "add", "."], cwd=root, check=True)
    subprocess.run([*git, "commit", "-qm", "start"], cwd=root, check=True)
    return root


def metrics_of(root: Path) -> dict[str, str]:
    """Text of every metrics file."""
    return {path.name: path.read_text() for path in sorted((root / "metrics").glob("*.json"))}


def stages_run(root: Path) -> dict[str, float]:
    """When each stage's own work last ended."""
    return {path.stem: path.stat().st_mtime for path in (root / ".flywheel/timings").glob("*.json")}
