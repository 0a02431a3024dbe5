"""Which checkpoint is handed over, and when a run is stopped, with a judge stood in for and on a real small run."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.curation.tables import PROMPTS as PROMPTS_TABLE
from flywheel_tasks.policy import rl, safe_steps
from flywheel_tasks.policy.checks import Check
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.storage.tables import read_rows
from flywheel_tasks.training.run import train, trainer_arguments
from tests.policy.conftest import prompt_row, write
from tests.policy.test_checks import at
from tests.training.test_run import XS, Line, inputs_of_reward_model


def test_experiments_may_hand_over_the_last_check_or_the_policy_before_rl(tmp_path: Path) -> None:
    class Made(safe_steps.SafeSteps):
        def checks(self) -> list[Check]:
            return [at(0, 0.5), at(4, 0.58), at(8, 0.97)]

    nothing: Any = None
    steps = Made(
        tmp_path, every=4, steps=8, prompts=[], judged=0, champion=[], judge=nothing, measure=nothing
    )
    assert [steps.chosen(0.6, hand_over=which).step for which in ("nearest", "last", "start")] == [4, 8, 0]


CARD = Card("c1", "Mira", ("calm",), ())
PROMPTS = [Prompt(f"p{k}", "user", CARD, (Turn(role="user", content=f"hello {k}"),)) for k in range(12)]


def side(reward: float) -> list[dict[str, Any]]:
    """Replies of equal worth, which the judge likes the less the more they are worth."""
    return [
        {
            "prompt_id": one.prompt_id,
            "sample": 0,
            "reply": f"{reward}",
            "tokens": 1,
            "ended": True,
            "reward": reward + k / 99,
        }
        for k, one in enumerate(PROMPTS)
    ]


class Dislikes:
    """A judge to whom a higher reward is a worse reply."""

    def prefer(self, rows: Any, progress: str | None = None) -> list[float]:
        return [0.5 - float(new) * (1 + k / 24) / 100 for k, (*_, new, _) in enumerate(rows)]


class Counts(Dislikes):
    """Remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prefer(self, rows: Any, progress: str | None = None) -> list[float]:
        self.asked += [history[-1]["content"] for _, history, *_ in rows]
        return super().prefer(rows)


@pytest.mark.parametrize(
    ("users", "asked", "warning"),
    [
        ("aaaabbcdefgh", [0, 4, 6, 7, 8, 9, 10, 11, 1, 5], ""),
        (
            "aaaaaaaaaabb",
            [0, 10, 1, 11, 2, 3, 4, 5, 6, 7],
            "will hardly stop the run, for it must fall by 60.7",
        ),
        ("aaaaaaaaaaaa", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "of 1 held-out users: it cannot stop the run"),
    ],
)
def test_the_judge_reads_of_as_many_users_as_there_are_and_of_too_few_it_is_said_before(
    users: str, asked: list[int], warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge: Any = Counts()
    safe = safe_steps.SafeSteps(
        tmp_path,
        every=1,
        steps=10,
        prompts=[replace(prompt, user_id=user) for prompt, user in zip(PROMPTS, users, strict=True)],
        judged=10,
        champion=side(0.0),
        judge=judge,
        measure=lambda model, step: side(0.1),
    )
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)
    read = safe.check(0, None)
    assert sorted(judge.asked) == sorted(f"hello {k}" for k in asked)
    assert len(read.by_user("judge")) == len(set(users))


class Killed(TrainerCallback):
    """Ends the process after a step, before anything is saved of it."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("games", "steps"), [(True, 5), (False, 6)])
def test_a_killed_run_measures_again_what_it_had_not_saved(
    make_io: Callable[..., Any], tmp_path: Path, games: bool, steps: int
) -> None:
    """Checks are newer than checkpoints: one that said stop, of weights that are gone, must not stop the run.

    Nor must it end another way where the weights are others the second time, as with rollouts that nothing fixes.
    """
    inputs_of_reward_model(tmp_path)
    measured: list[tuple[int, int]] = []

    def run(number: int, rewards: list[float], *callbacks: TrainerCallback) -> dict[str, Any]:
        io = make_io("train_pointwise_rm", tmp_path, {"compute.precision": "float32"})

        def measure(model: Any, step: int) -> list[dict[str, Any]]:
            measured.append((number, step))
            return side(rewards[step])

        judge: Any = Dislikes()
        safe = safe_steps.SafeSteps(
            io.resume_dir(),
            every=1,
            steps=6,
            prompts=PROMPTS,
            judged=12,
            champion=side(0.0),
            judge=judge,
            measure=measure,
        )
        safe.check(0, None)
        arguments = trainer_arguments(io, 0.3, 4, 6, remove_unused_columns=False, save_steps=3)
        rows = [{"x": torch.tensor([x]), "y": torch.tensor([2 * x + 1])} for x in XS]
        trainer = Trainer(
            model=Line(),
            args=TrainingArguments(**arguments),
            train_dataset=rows,
            callbacks=[safe, *callbacks],
        )
        done = train(trainer, io, curve=tmp_path / "curve.csv", stopped_at=safe.stopped_at)
        weights = load_file(io.resume_dir() / f"check-{steps}.safetensors")
        assert torch.equal(weights["weight"], trainer.model.get_parameter("weight").detach().cpu())
        assert [check.step for check in safe.checks()] == list(range(steps + 1))
        assert (safe.stopped_at() is not None) is games
        return done

    gaming = [0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0.0]
    with pytest.raises(KeyboardInterrupt):
        run(1, gaming, Killed(after=5))
    found = run(2, gaming if games else [0.0] * 7)
    assert found["steps"] == steps
    assert measured == [(1, step) for step in range(6)] + [(2, step) for step in range(4, steps + 1)]


class LikesE:
    """Stands in for a reward model: the share of a reply's characters that are an e."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def score(self, rows: Any, progress: str | None = None) -> list[float]:
        return [reply.count("e") / max(1, len(reply)) for *_, reply in rows]


class HatesE(LikesE):
    """Stands in for a judge that dislikes what the reward model likes."""

    def prefer(self, rows: Any, progress: str | None = None) -> list[float]:
        return [
            0.5 + (old.count("e") / max(1, len(old)) - new.count("e") / max(1, len(new))) / 2
            for *_, new, old in rows
        ]


@pytest.fixture
def gaming_io(policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """A run whose policy learns to please the reward model with what the judge dislikes."""
    monkeypatch.setattr(rl, "PointwiseScorer", LikesE)
    monkeypatch.setattr(rl, "PairwiseScorer", HatesE)

    def make(root: Path) -> Any:
        made = root.exists()
        io = policy_io(
            "rl",
            {
                "rl.steps": 30,
                "rl.prompts_per_step": 4,
                "rl.group_size": 6,
                "rl.learning_rate": 0.05,
                "rl.length_penalty": 0.0,
                "rl.cut_off_penalty": 0.0,
                "rl.heldout_prompts": 12,
                "rl.judge_prompts": 10,
                "rl.check_every": 6,
                "sampling.batch_rows": 64,
            },
            root=root,
        )
        for folder in () if made else ("models/policy_dpo", "inputs/champion"):
            model = AutoModelForCausalLM.from_pretrained(io.root / folder)
            with torch.no_grad():  # larger embeddings, so that what the layers learn shows in the logits
                model.get_input_embeddings().weight.mul_(10)
            model.save_pretrained(io.root / folder)
        rows = [prompt_row("policy_heldout", n) | {"user_id": f"policy_heldout-u{n}"} for n in range(12)]
        write(rows, PROMPTS_TABLE, io.root / "data/split/policy_heldout.parquet")
        return io

    return make


@pytest.mark.slow
def test_a_run_that_games_its_reward_stops_and_hands_over_an_earlier_checkpoint(
    gaming_io: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And killed after its stop it does not train on: the second run of the stage only hands over."""

    class Killed(RuntimeError):
        pass

    def dies(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rl, "merge_to_full", dies)
        with pytest.raises(Killed):
            rl.run(gaming_io(tmp_path / "gaming"))
    steps: list[int] = []
    original = rl.Rewards.pointwise

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return original(self, *args, **kwargs)

    counted.__name__ = "pointwise"
    monkeypatch.setattr(rl.Rewards, "pointwise", counted)
    io = gaming_io(tmp_path / "gaming")
    metrics = rl.run(io)
    assert not steps
    checkpoint = metrics["checkpoint"]
    assert checkpoint["stopped_early"]
    assert checkpoint["step"] < checkpoint["last_step"]
    assert metrics["train"]["steps"] == checkpoint["last_step"]
    with io.out("plots/rl_checks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["reward"]) > float(rows[0]["reward"])
    assert float(rows[-1]["judge"]) < float(rows[0]["judge"])
    read: dict[int, dict[tuple[str, int], bool]] = {}
    for row in read_rows(io.out("data/rl") / "checks.parquet"):
        read.setdefault(row["step"], {})[row["prompt_id"], row["sample"]] = row["judge"] is not None
    first, *others = read.values()
    assert (sum(first.values()), len(first)) == (10, 24)
    assert all(other == first for other in others), (
        "a judge that reads other prompts each time compares nothing"
    )


def test_restoring_step_0_undoes_the_training(
    policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far ahead at once.
    monkeypatch.setattr(safe_steps.Check, "expected_win_rate", lambda self: 0.5 + self.step)
    io = policy_io("rl", {"rl.target_win_rate": 0.5, "rl.learning_rate": 0.05})
    assert rl.run(io)["checkpoint"]["step"] == 0
    old = AutoModelForCausalLM.from_pretrained(io.root / "models/policy_dpo").state_dict()
    new = AutoModelForCausalLM.from_pretrained(io.out("models/policy")).state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
