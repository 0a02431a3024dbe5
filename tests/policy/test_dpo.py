import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.chat.prompt import reply_ids
from flywheel_tasks.policy import dpo
from flywheel_tasks.policy.dpo import EncodedDPOTrainer, choose_pairs, encode_pair, run
from flywheel_tasks.policy.prompts import PromptError
from flywheel_tasks.rewards.pairs import PairError, load_pairs
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.training.run import TrainingError
from tests.policy.conftest import pair_rows, write


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_models / "base")


def log_prob(model: Any, prompt: list[int], reply: list[int]) -> float:
    """log p(reply | prompt), token by token, in plain torch."""
    ids = torch.tensor([prompt + reply], device=model.device)
    with torch.no_grad():
        logs = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(reply))


def test_loss_and_margins_equal_plain_torch(policy_io: Callable[..., Any], monkeypatch: Any) -> None:
    """The second step's loss, with the weights before it, against equation 7 written out."""
    seen: list[tuple[float, list[tuple[float, float]]]] = []
    original = EncodedDPOTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids, mask = inputs["input_ids"], inputs["completion_mask"]
        real = inputs["attention_mask"]
        rows = []
        for row, completion, kept in zip(ids.tolist(), mask.tolist(), real.tolist(), strict=True):
            prompt = [t for t, c, k in zip(row, completion, kept, strict=True) if k and not c]
            reply = [t for t, c, k in zip(row, completion, kept, strict=True) if k and c]
            now = log_prob(self.model, prompt, reply)
            with self.model.disable_adapter():
                rows.append((now, log_prob(self.model, prompt, reply)))
        loss = original(self, model, inputs, *args, **kwargs)
        if not self.model.training:  # pairs that are measured only
            return loss
        seen.append((float(loss.detach()), rows))
        return loss

    monkeypatch.setattr(EncodedDPOTrainer, "compute_loss", spy)
    io = policy_io("dpo", {"dpo.learning_rate": 0.05, "dpo.beta": 0.3})
    metrics = run(io)
    assert metrics["train"]["steps"] == len(seen) == 3
    for loss, rows in seen:
        half = len(rows) // 2
        margins = [
            0.3 * ((c - c0) - (r - r0)) for (c, c0), (r, r0) in zip(rows[:half], rows[half:], strict=True)
        ]
        expected = -sum(float(logsigmoid(torch.tensor(m))) for m in margins) / half
        assert loss == pytest.approx(expected, abs=1e-4)
    assert seen[0][0] == pytest.approx(
        math.log(2), abs=1e-5
    )  # both models are the same before the first step
    assert abs(seen[2][0] - math.log(2)) > 1e-4


def test_stage(policy_io: Callable[..., Any]) -> None:
    io = policy_io("dpo", {"dpo.epochs": 3.0, "dpo.learning_rate": 0.03, "dpo.pairs": {"preferences": 9}})
    metrics = run(io)
    assert metrics["pairs"]["all"] == 8
    assert metrics["cut_short"] == {"prompts": 8, "card": 0, "last_turn": 0}
    assert (metrics["train"]["completions"], metrics["train"]["cut"]) == (
        2 * 3 * 8,
        0,
    )  # sides, epochs, pairs
    assert set(metrics["pairs"]) <= {"all", "ranking", "rewrite"}
    assert metrics["sets"] == {
        "preferences": {
            "available": 8,
            "left_out_as_equal": 0,
            "used": 8,
            "unseen": {"n": 0, "margin": None, "accuracy": None},
        }
    }
    assert metrics["train"]["margin_last"] > 0
    assert metrics["train"]["accuracy_last"] > 0.5
    # Both from fresh loads: the saved model prefers chosen replies more than the one before does.
    saved = AutoModelForCausalLM.from_pretrained(io.out("models/policy_dpo"))
    before = AutoModelForCausalLM.from_pretrained(io.root / "models/policy_sft")
    tokenizer = AutoTokenizer.from_pretrained(io.out("models/policy_dpo"))
    pairs = load_pairs(io.root / "data/preferences/pairs.parquet")["policy"]
    gains = []
    for pair in pairs:
        row = encode_pair(tokenizer, pair, 96, 128)
        assert row is not None
        gains.append(
            sum(
                sign
                * (
                    log_prob(saved, row["prompt_ids"], row[side])
                    - log_prob(before, row["prompt_ids"], row[side])
                )
                for side, sign in (("chosen_ids", 1), ("rejected_ids", -1))
            )
        )
    assert sum(gain > 0 for gain in gains) >= 6


def test_prompts_that_give_way_to_their_replies_are_counted_as_they_were_cut(
    policy_io: Callable[..., Any],
) -> None:
    """``prompt.max_tokens`` (96) holds them; what the longest reply leaves of ``dpo.max_tokens`` (128) does not."""
    io = policy_io("dpo", {"dpo.pairs": {"preferences": 4}})
    rows = pair_rows("policy", 4)
    for row in rows:
        row["history"] = [{"role": "user", "content": "moon " * 40}]
    rows[0]["rejected"] = "lamp " * 60
    write(rows, PAIRS, io.root / "data/preferences/pairs.parquet")
    assert run(io)["cut_short"] == {"prompts": 4, "card": 0, "last_turn": 1}


def test_a_reply_that_has_lost_its_end_stops_the_run(policy_io: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(dpo, "reply_ids", lambda tokenizer, reply: [*reply_ids(tokenizer, reply)[:-1]])
    with pytest.raises(TrainingError, match=r"dpo: pair policy-p\d, chosen: .* not in an end token"):
        run(policy_io("dpo"))


def test_reward_pairs_are_never_trained_on(policy_io: Callable[..., Any]) -> None:
    io = policy_io("dpo")
    write(pair_rows("reward_train", 4), PAIRS, io.root / "data/preferences/pairs.parquet")
    with pytest.raises(PairError, match="no pair with purpose policy"):
        run(io)


def test_pairs_that_are_equal_once_cut_are_left_out(tokenizer: Any, tmp_path: Path) -> None:
    (row,) = pair_rows("policy", 1)
    write(
        [row | {"chosen": "so " * 100 + "a", "rejected": "so " * 100 + "b"}],
        PAIRS,
        tmp_path / "pairs.parquet",
    )
    (pair,) = load_pairs(tmp_path / "pairs.parquet")["policy"]
    assert encode_pair(tokenizer, pair, 96, 64) is None
    whole = encode_pair(tokenizer, pair, 96, 400)
    assert whole is not None
    assert whole["chosen_ids"][-1] == whole["rejected_ids"][-1] == tokenizer.eos_token_id


def test_pairs_that_are_left_out_as_equal_are_counted_in_their_set(
    policy_io: Callable[..., Any], tokenizer: Any
) -> None:
    io = policy_io("dpo", {"dpo.pairs": {"preferences": 2, "safety": 3}})
    same = {"chosen": "so " * 200 + "a", "rejected": "so " * 200 + "b"}
    rows = pair_rows("policy", 4)
    write([*(row | same for row in rows[:3]), rows[3]], PAIRS, io.root / "data/preferences/pairs.parquet")
    found, _ = dpo.chosen_pairs(io, tokenizer)
    counts = {name: (one.available, one.left_out_as_equal, len(one.used)) for name, one in found.items()}
    assert counts == {"preferences": (1, 3, 1), "safety": (16, 0, 3)}
    write([row | same for row in rows], PAIRS, io.root / "data/preferences/pairs.parquet")
    with pytest.raises(PairError, match=r"to train on \(4 are equal once cut to dpo\.max_tokens\); dpo"):
        dpo.chosen_pairs(io, tokenizer)


def margins(io: Any, tokenizer: Any, pairs: list[Any]) -> list[float]:
    """beta times the gain of the chosen reply over that of the rejected one, from fresh loads, in plain torch."""
    saved, before = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (io.out("models/policy_dpo"), io.root / "models/policy_sft")
    )
    found = []
    for pair in pairs:
        row = encode_pair(tokenizer, pair, 96, 128)
        assert row is not None
        gain = {
            side: log_prob(saved, row["prompt_ids"], row[side])
            - log_prob(before, row["prompt_ids"], row[side])
            for side in ("chosen_ids", "rejected_ids")
        }
        found.append(io.settings.dpo.beta * (gain["chosen_ids"] - gain["rejected_ids"]))
    return found


def test_named_sets_are_learned_and_measured_on_pairs_that_were_not(policy_io: Callable[..., Any]) -> None:
    changes = {"dpo.pairs": {"preferences": 2, "safety": 3, "tool_calls": 9}, "dpo.learning_rate": 0.02}
    io = policy_io("dpo", changes | {"dpo.epochs": 2.0})
    metrics = run(io)
    assert metrics["pairs"] == {"all": 14, "ranking": 1, "rewrite": 1, "set": 12}
    sets = metrics["sets"]
    counts = {name: (found["available"], found["used"], found["unseen"]["n"]) for name, found in sets.items()}
    assert counts == {"preferences": (8, 2, 2), "safety": (16, 3, 3), "tool_calls": (16, 9, 7)}
    tokenizer = AutoTokenizer.from_pretrained(io.out("models/policy_dpo"))
    chosen, _ = dpo.chosen_pairs(io, tokenizer)
    for name, found in sets.items():
        used, unseen = chosen[name].used, chosen[name].unseen
        assert not {pair.prompt_id for pair in used} & {pair.prompt_id for pair in unseen}
        expected = margins(io, tokenizer, unseen)
        assert found["unseen"]["margin"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        assert found["unseen"]["accuracy"] == pytest.approx(sum(m > 0 for m in expected) / len(expected))
    assert sum(margins(io, tokenizer, chosen["tool_calls"].used)) > 0


def test_a_run_killed_in_its_last_step_and_again_after_it_ends_as_an_uninterrupted_one(
    policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The pairs that are measured only are so after the last step, and the metrics come from the trainer's log."""
    changes = {"dpo.pairs": {"preferences": 2, "safety": 2}, "dpo.learning_rate": 0.02, "dpo.epochs": 2.0}
    whole = policy_io("dpo", changes, root=tmp_path / "whole")
    metrics = run(whole)
    assert {found["unseen"]["n"] for found in metrics["sets"].values()} == {2}
    steps: list[int] = []
    original = EncodedDPOTrainer.compute_loss

    def dies(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.model.training:
            raise KeyboardInterrupt
        steps.append(self.state.global_step + 1)
        return original(self, model, inputs, *args, **kwargs)

    def dies_before_saving(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    def killed() -> Any:
        return policy_io("dpo", changes, root=tmp_path / "killed")

    for owner, name, dying in (
        (EncodedDPOTrainer, "compute_loss", dies),
        (dpo, "merge_to_full", dies_before_saving),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            with pytest.raises(KeyboardInterrupt):
                run(killed())
        assert steps == [1, 2, 3, 4]
    monkeypatch.setattr(EncodedDPOTrainer, "compute_loss", dies)
    again = killed()
    assert run(again) == metrics
    assert steps == [1, 2, 3, 4], "no step was left to do, and no pair to measure"
    for name in ("models/policy_dpo", "plots/dpo.csv"):
        assert tree_digest(again.out(name)) == tree_digest(whole.out(name)), name


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ({"replay": 2}, r"sets/replay\.jsonl: no row with a rejected reply to train on"),
        ({"absent": 2}, r"sets/absent\.jsonl: no such set"),
    ],
)
def test_a_set_without_pairs_is_named(pairs: Any, complaint: str, policy_io: Callable[..., Any]) -> None:
    io = policy_io("dpo", {"dpo.pairs": pairs})
    with pytest.raises((PairError, PromptError), match=complaint):
        run(io)


def test_a_small_set_takes_one_pair_of_every_prompt_first(tmp_path: Path) -> None:
    rows = pair_rows("policy", 4)
    rows += [row | {"pair_id": row["pair_id"] + "b"} for row in rows]
    write(rows, PAIRS, tmp_path / "pairs.parquet")
    pairs = load_pairs(tmp_path / "pairs.parquet")["policy"]
    chosen = choose_pairs(pairs, 5, 1)
    assert len({pair.prompt_id for pair in chosen[:4]}) == 4
    assert choose_pairs(pairs[::-1], 5, 1) == chosen
    assert len(choose_pairs(pairs, 99, 1)) == 8
