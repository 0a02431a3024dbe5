from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flywheel_tasks.annotation.schemas import REWRITES
from flywheel_tasks.chat.card import Card
from flywheel_tasks.chat.prompt import reply_ids
from flywheel_tasks.policy import sft_data
from flywheel_tasks.policy.prompts import Prompt, PromptError
from flywheel_tasks.policy.rejection_sampling import ACCEPTED
from flywheel_tasks.policy.sft import run
from flywheel_tasks.policy.sft_data import IGNORED, Example, encode, load_examples
from flywheel_tasks.training.run import TrainingError
from tests.policy.conftest import accepted_rows, rewrite_rows, write
from tests.policy.test_dpo import log_prob

NATURAL = {
    "rejection_user": 0.4,
    "rejection_internal": 0.2,
    "rewrites": 0.4,
}  # as the hand-made tables have them
PROMPT = Prompt("p1", "user", Card("c1", "Mira", ("calm",), ()), ({"role": "user", "content": "Hi there"},))


@pytest.fixture(scope="module")
def tokenizer(tiny_models: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_models / "base")


def test_only_the_reply_is_learned_and_its_end_token_is(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # the trap this test is about
    row = encode(tokenizer, Example("rewrites", PROMPT, "Hello, friend."), 96, 128)
    learned = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learned) == "Hello, friend.<|im_end|>"
    start = row["labels"].index(learned[0])
    assert row["labels"] == [IGNORED] * start + row["input_ids"][start:]
    assert tokenizer.decode(row["input_ids"][:start]).endswith("Hi there<|im_end|>\n<|im_start|>assistant\n")


def test_a_reply_that_is_cut_has_no_end_token(tokenizer: Any) -> None:
    row = encode(tokenizer, Example("rewrites", PROMPT, "word " * 200), 96, 64)
    assert len(row["input_ids"]) == 64
    assert row["labels"][-1] != tokenizer.eos_token_id
    assert sum(label != IGNORED for label in row["labels"]) >= 32


def test_trl_trains_on_exactly_these_labels_with_the_loss_of_plain_torch(
    policy_io: Callable[..., Any], monkeypatch: Any
) -> None:
    """The loss: -log p of the replies' tokens, each row alone, mean over all tokens that the step learns."""
    from trl import SFTTrainer

    seen: list[Any] = []
    losses: list[tuple[float, float]] = []
    original = SFTTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = list(zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True))
        seen.extend(rows)
        total, tokens = 0.0, 0
        for ids, labels in rows:
            learned = [i for i, label in enumerate(labels) if label != IGNORED]
            reply = ids[learned[0] : learned[-1] + 1]
            total -= log_prob(self.model, ids[: learned[0]], reply)
            tokens += len(reply)
        loss = original(self, model, inputs, *args, **kwargs)
        losses.append((float(loss.detach()), total / tokens))
        return loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", spy)
    metrics = run(policy_io("sft", {"sft.mixture": NATURAL, "sft.learning_rate": 0.02}))
    assert len(losses) == metrics["train"]["steps"] == 3
    for loss, expected in losses:
        assert loss == pytest.approx(expected, abs=1e-4)
    assert len(seen) == metrics["train"]["completions"] == 12  # ten rows, and two again in the last step
    assert metrics["train"]["cut"] == 0
    for ids, labels in seen:
        learned = [i for i, label in enumerate(labels) if label != IGNORED]
        assert learned == list(range(learned[0], learned[-1] + 1))
        assert [labels[i] for i in learned] == [ids[i] for i in learned]
        assert labels[learned[-1]] == 2
        assert 2 not in [labels[i] for i in learned[:-1]]


def test_a_reply_that_has_lost_its_end_stops_the_run(policy_io: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(sft_data, "reply_ids", lambda tokenizer, reply: [*reply_ids(tokenizer, reply)[:-1]])
    with pytest.raises(TrainingError, match=r"sft: \w+ of prompt [\w-]+: .* not in an end token"):
        run(policy_io("sft", {"sft.mixture": NATURAL}))


def test_prompts_that_give_way_to_their_replies_are_counted_as_they_were_cut(
    policy_io: Callable[..., Any],
) -> None:
    """``prompt.max_tokens`` (96) holds them; what the longest reply leaves of ``sft.max_tokens`` (128) does not."""
    io = policy_io("sft", {"sft.mixture": {"rewrites": 1.0}, "sft.on_missing": "redistribute"})
    rows = rewrite_rows("policy", 4)
    for row in rows:
        row["history"] = [{"role": "user", "content": "moon " * 40}]
    rows[0]["rewrite"] = "lamp " * 60
    write([*rows, rows[0] | {"rewrite": "Short."}], REWRITES, io.root / "data/preferences/rewrites.parquet")
    assert run(io)["cut_short"] == {"prompts": 4, "card": 0, "last_turn": 1}


def test_only_rewrites_of_the_policy_are_used(tmp_path: Path) -> None:
    write(accepted_rows(4), ACCEPTED, tmp_path / "accepted.parquet")
    rows = rewrite_rows("policy", 2) + rewrite_rows("reward_train", 3) + rewrite_rows("reward_heldout", 3)
    write(rows, REWRITES, tmp_path / "rewrites.parquet")
    found = load_examples(tmp_path / "accepted.parquet", tmp_path / "rewrites.parquet")
    assert [e.prompt.prompt_id for e in found if e.mix == "rewrites"] == ["policy-0", "policy-1"]
    assert sorted({e.mix for e in found}) == ["rejection_internal", "rejection_user", "rewrites"]


def test_what_two_annotators_wrote_alike_for_one_prompt_is_one_example(tmp_path: Path) -> None:
    write(accepted_rows(2), ACCEPTED, tmp_path / "accepted.parquet")
    first, second = rewrite_rows("policy", 2)
    rows = [first, second, first | {"rejected": "Another reply."}, first | {"rewrite": "In other words."}]
    write(rows, REWRITES, tmp_path / "rewrites.parquet")
    found = load_examples(tmp_path / "accepted.parquet", tmp_path / "rewrites.parquet")
    written = [(e.prompt.prompt_id, e.reply) for e in found if e.mix == "rewrites"]
    assert len(written) == len(set(written)) == 3


def test_bad_tables_are_refused_by_file_row_and_rule(tmp_path: Path) -> None:
    accepted, rewrites = tmp_path / "accepted.parquet", tmp_path / "rewrites.parquet"
    write([], ACCEPTED, accepted)
    write(rewrite_rows("reward_train", 2), REWRITES, rewrites)
    with pytest.raises(PromptError, match="no reply to learn from"):
        load_examples(accepted, rewrites)
    write([accepted_rows(1)[0], accepted_rows(2)[1] | {"reply": " "}], ACCEPTED, accepted)
    with pytest.raises(PromptError, match=r"accepted.parquet: row 1 .* reply is empty"):
        load_examples(accepted, rewrites)
    write([accepted_rows(1)[0] | {"reply": "Look! <tool_call>{}</tool_call>"}], ACCEPTED, accepted)
    with pytest.raises(PromptError, match=r"accepted.parquet: row 0 .* reply: a tool call must be the whole"):
        load_examples(accepted, rewrites)
    write(accepted_rows(1), ACCEPTED, accepted)
    write([rewrite_rows("policy", 1)[0] | {"rewrite": "<tool_call>{"}], REWRITES, rewrites)
    with pytest.raises(PromptError, match=r"rewrites.parquet: row 0 .* rewrite: a tool call must be the"):
        load_examples(accepted, rewrites)
    write([accepted_rows(1)[0] | {"history": []}], ACCEPTED, accepted)
    with pytest.raises(PromptError, match=r"row 0 .* history does not end"):
        load_examples(accepted, rewrites)


def _loss(folder: Path, rows: list[dict[str, list[int]]]) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return sum(
            float(model(torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss)
            for r in rows
        ) / len(rows)


def test_stage_learns_repeated_data_and_saves_a_plain_model(
    policy_io: Callable[..., Any], tokenizer: Any
) -> None:
    natural = {"rejection_user": 0.5, "rejection_internal": 0.25, "rewrites": 0.25}
    io = policy_io("sft", {"sft.epochs": 8.0, "sft.learning_rate": 0.03, "sft.mixture": natural})
    write(accepted_rows(6, "violin lamp violin lamp"), ACCEPTED, io.root / "data/rejection/accepted.parquet")
    write(
        rewrite_rows("policy", 2, "violin lamp violin lamp"),
        REWRITES,
        io.root / "data/preferences/rewrites.parquet",
    )
    metrics = run(io)
    assert metrics["rows"] == 8
    assert metrics["cut_short"] == {"prompts": 8, "card": 0, "last_turn": 0}
    assert {name: part["used"] for name, part in metrics["mixture"]["sources"].items()} == {
        "rejection_internal": 2,
        "rejection_user": 4,
        "rewrites": 2,
    }
    assert metrics["train"]["steps"] == 16
    assert metrics["train"]["loss_last"] < metrics["train"]["loss_first"] - 0.2
    # The saved model, in a fresh load and by transformers' own loss, is better than the champion.
    row = encode(tokenizer, Example("rewrites", PROMPT, "violin lamp violin lamp"), 96, 128)
    saved = io.out("models/policy_sft")
    assert _loss(saved, [row]) < _loss(io.root / "inputs/champion", [row]) - 0.3
    assert metrics["mean_completion_tokens"] == sum(label != IGNORED for label in row["labels"])
    curve = io.out("plots/sft.csv").read_text(encoding="utf-8").splitlines()
    assert len(curve) == 17
    assert curve[0].startswith("step,loss")
