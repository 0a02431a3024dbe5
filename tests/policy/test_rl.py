import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from flywheel_tasks.policy import rl, safe_steps
from flywheel_tasks.policy.grpo import RolloutError, make_rollout, rollout_seed
from flywheel_tasks.policy.heldout import paired_gain
from flywheel_tasks.policy.reward_parts import Rewards
from flywheel_tasks.policy.rl import run
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.policy.selection import select
from flywheel_tasks.settings import Sampling
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.training.run import TrainingError


def test_selection_takes_low_means_then_high_spreads() -> None:
    rewards = [[5.0, 5.0], [0.0, 0.1], [3.0, 9.0], [1.0, 1.1], [2.0, 8.1], [4.0, 4.0]]
    found = select(list("abcdef"), rewards, 4 / 6)
    assert [one.reason for one in found] == [
        "not_selected",
        "low_mean",
        "high_std",
        "low_mean",
        "high_std",
        "not_selected",
    ]
    assert [one.selected for one in found] == [False, True, True, True, True, False]
    assert found[2].mean_reward == 6.0
    assert found[2].reward_std == pytest.approx(np.std([3.0, 9.0], ddof=1))


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=1, max_size=12),
    st.floats(0.0, 1.0),
)
def test_selection_always_takes_its_share(rewards: list[list[float]], share: float) -> None:
    names = [f"p{i}" for i in range(len(rewards))]
    found = select(names, rewards, share)
    assert [one.prompt_id for one in found] == names
    assert sum(one.selected for one in found) == max(1, round(share * len(rewards)))


def test_a_rollout_of_broken_groups_is_refused() -> None:
    class Trainer:
        num_generations = 2

    sampling = Sampling(max_new_tokens=4, temperature=1.0, top_k=5, batch_rows=4)
    with pytest.raises(RolloutError, match="3 prompts are not whole groups of 2"):
        make_rollout(sampling, 96, 1)(["a", "a", "b"], Trainer())


def test_rollout_seeds_differ_by_step_and_run() -> None:
    assert len({rollout_seed(seed, step) for seed in (1, 2) for step in range(50)}) == 100


def test_the_paired_interval_covers_the_mean_and_uses_the_pairing() -> None:
    random = np.random.default_rng(0)
    base = random.normal(0, 5, 60)  # prompts differ much more than the gain
    after = base + random.normal(0.5, 0.2, 60)
    ids = [f"p{number}" for number in range(60)]
    users = {prompt: prompt for prompt in ids}
    found = paired_gain(base.tolist(), after.tolist(), ids, users)
    assert (found["n"], found["clusters"]) == (60, 60)
    low, high, value = found["low"], found["high"], found["value"]
    assert low is not None
    assert high is not None
    assert value is not None
    assert 0.4 < low < value < high < 0.6
    single = {"value": 1.0, "low": None, "high": None, "n": 1, "clusters": 1}
    assert paired_gain([1.0], [2.0], ["p"], {"p": "u"}) == single
    # The same replies twice are no more prompts, wherever they stand.
    assert paired_gain([*base, *base], [*after, *after], ids * 2, users) == found
    twice = (np.repeat(values, 2).tolist() for values in (base, after, ids))
    assert paired_gain(*twice, users) == pytest.approx(found)
    with pytest.raises(ValueError, match="unequally many replies"):
        paired_gain([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["p", "p", "q"], {"p": "u", "q": "v"})


def test_the_gain_of_few_users_is_known_as_well_as_of_few_users() -> None:
    """95% of the intervals hold the true gain where users differ and each has several prompts."""
    random = np.random.default_rng(0)
    ids = [f"p{number:02}" for number in range(40)]
    users = {prompt: f"u{number // 5}" for number, prompt in enumerate(ids)}
    held = []
    for _ in range(400):
        after = 0.3 + np.repeat(random.normal(0, 0.5, 8), 5) + random.normal(0, 0.3, 40)
        found = paired_gain([0.0] * 40, after.tolist(), ids, users)
        assert (found["n"], found["clusters"]) == (40, 8)
        assert found["low"] is not None
        assert found["high"] is not None
        held.append(found["low"] < 0.3 < found["high"])
    assert np.mean(held) == pytest.approx(0.95, abs=0.035)


def test_stage(policy_io: Callable[..., Any]) -> None:
    io = policy_io("rl")
    metrics = run(io)
    selection = read_rows(io.out("data/rl") / "selection.parquet")
    heldout = read_rows(io.out("data/rl") / "heldout.parquet")
    assert len(selection) == 6
    assert sum(row["selected"] for row in selection) == round(0.6 * 6)
    assert {row["prompt_id"].rpartition("-")[0] for row in selection} == {"policy_train"}
    assert {row["prompt_id"].rpartition("-")[0] for row in heldout} == {"policy_heldout"}
    gain = metrics["heldout"]["reward_gain"]
    assert gain["n"] == 4
    whose = {
        row["prompt_id"]: row["user_id"] for row in read_rows(io.root / "data/split/policy_heldout.parquet")
    }
    assert gain["clusters"] == len({whose[row["prompt_id"]] for row in heldout})
    asked = {(row["prompt_id"], row["sample"]) for row in heldout}
    assert len(asked) == len(heldout) == 8
    assert {sample for _, sample in asked} == {0, 1}
    before, after = ([row[f"{side}_reward"] for row in heldout] for side in ("before", "after"))
    assert gain["value"] == pytest.approx(np.mean(after) - np.mean(before))
    by_step: dict[int, list[float]] = {}
    for row in read_rows(io.out("data/rl") / "checks.parquet"):
        by_step.setdefault(row["step"], []).append(row["reward"])
    last = metrics["heldout"]["reward_gain_last"]
    assert last["value"] == pytest.approx(np.mean(by_step[2]) - np.mean(by_step[0]))
    with io.out("plots/rl.csv").open(encoding="utf-8") as file:
        curve = list(csv.DictReader(file))
    assert [row["step"] for row in curve] == ["1", "2"]
    clipped = [float(row["completions/clipped_ratio"]) for row in curve]
    assert metrics["train"]["cut_share"] == pytest.approx(np.mean(clipped), abs=1e-5)
    for row in curve:
        total = float(row["rewards/pointwise/mean"]) + float(row["rewards/penalties/mean"])
        assert float(row["reward"]) == pytest.approx(total, abs=1e-4)
        parts = float(row["penalty_length"]) + float(row["penalty_cut_off"])
        assert float(row["rewards/penalties/mean"]) == pytest.approx(parts, abs=1e-4)
        assert float(row["entropy"]) > 0
    assert float(curve[0]["kl"]) == pytest.approx(0.0, abs=1e-6)  # nothing is learned yet
    assert float(curve[1]["kl"]) > 0
    with io.out("plots/rl_checks.csv").open(encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "2"]
    checks = read_rows(io.out("data/rl") / "checks.parquet")
    judged = {(row["step"], row["sample"]): row["judge"] is not None for row in checks}
    assert judged == {(step, sample): sample == 0 for step in (0, 2) for sample in (0, 1)}
    seen = metrics["judge_stop"]
    assert (seen["prompts"], seen["users"]) == (4, 4), "all, though rl.judge_prompts is more"
    assert 0 < seen["noticed_fall"] < 0.5
    at_start = [row["reply"] for row in checks if row["step"] == 0]
    assert at_start == [row["champion_reply"] for row in checks if row["step"] == 0]  # the same tiny model
    handed_over = metrics["checkpoint"]["step"]
    assert [row["reply"] for row in checks if row["step"] == handed_over] == [
        row["after_reply"] for row in heldout
    ]
    AutoModelForCausalLM.from_pretrained(io.out("models/policy"))


@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_a_completion_that_has_lost_its_end_stops_the_run(
    policy_io: Callable[..., Any], monkeypatch: Any, method: str
) -> None:
    """The third completion of the first step ends before it may, without an end token."""
    monkeypatch.setattr(rl, "PointwiseScorer", LikesVowels)
    original = Sampler.sample_ids

    def loses(
        self: Sampler, prompts: Any, n: int, seed: int, progress: str | None = None, **rest: Any
    ) -> Any:
        drawn = original(self, prompts, n, seed, progress, **rest)
        if progress is None:  # a rollout; selection and checks show their progress
            drawn[0][2] = [5, 6, 7]
        return drawn

    monkeypatch.setattr(Sampler, "sample_ids", loses)
    small = {"rl.method": method, "rl.select_from": 2, "rl.heldout_prompts": 2, "rl.judge_prompts": 2}
    with pytest.raises(TrainingError, match=r"step 1, completion 2: .* ends in token 7 .* only at 8"):
        run(policy_io("rl", small))


class LikesVowels:
    """Stands in for a reward model: the share of a reply's characters that are vowels (a planted reward)."""

    def __init__(self, model_dir: Path, **kwargs: Any) -> None:
        pass

    def score(self, rows: Any, progress: str | None = None) -> list[float]:
        return [sum(letter in "aeiou" for letter in reply) / max(1, len(reply)) for *_, reply in rows]


@pytest.mark.slow
def test_a_planted_reward_rises(policy_io: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(rl, "PointwiseScorer", LikesVowels)
    io = policy_io(
        "rl",
        {
            "rl.steps": 12,
            "rl.prompts_per_step": 4,
            "rl.group_size": 8,
            "rl.learning_rate": 0.02,
            "rl.length_penalty": 0.0,
            "rl.cut_off_penalty": 0.0,
            "rl.heldout_prompts": 6,
            "rl.check_every": 6,
            "rl.target_win_rate": 1.0,  # a far target: the highest climber is handed over
            "sampling.batch_rows": 64,
        },
    )
    # Larger embeddings: the tiny model's logits would hardly differ from 0, whatever its layers learn.
    model = AutoModelForCausalLM.from_pretrained(io.root / "models/policy_dpo")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    model.save_pretrained(io.root / "models/policy_dpo")
    metrics = run(io)
    with io.out("plots/rl.csv").open(encoding="utf-8") as file:
        rewards = [float(row["rewards/pointwise/mean"]) for row in csv.DictReader(file)]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    with io.out("plots/rl_checks.csv").open(encoding="utf-8") as file:
        checks = [float(row["reward"]) for row in csv.DictReader(file)]
    assert checks[-1] > checks[0] + 0.1
    assert metrics["heldout"]["reward_gain"]["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    precision: str, policy_io: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(safe_steps, "over_optimised", lambda *checks: False)  # the tiny judge is a random one
    small = {"rl.steps": 4, "rl.learning_rate": 0.01, "rl.target_win_rate": 1.0}
    small |= {"compute.precision": precision}
    whole = policy_io("rl", small, root=tmp_path / "whole")
    run(whole)

    class Killed(RuntimeError):
        pass

    original = Rewards.penalties
    calls = []

    def dies(self: Rewards, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the fourth step
            raise Killed
        return original(self, *args, **kwargs)

    dies.__name__ = "penalties"
    killed = policy_io("rl", small, root=tmp_path / "killed")
    monkeypatch.setattr(Rewards, "penalties", dies)
    with pytest.raises(Killed):
        run(killed)
    torch.manual_seed(99)
    again = policy_io("rl", small, root=tmp_path / "killed")
    run(again)
    assert len(calls) == 5  # the fourth step alone was done again
    for name in ("models/policy", "data/rl", "plots/rl.csv", "plots/rl_checks.csv"):
        assert tree_digest(again.out(name)) == tree_digest(whole.out(name)), name
