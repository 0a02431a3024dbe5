"""The whole stage on tiny random models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation import evaluate
from flywheel_tasks.evaluation.evaluate import run
from flywheel_tasks.evaluation.prompts import LeakError
from flywheel_tasks.evaluation.refusal_detector import Rules
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.policy.sampler import Sampler
from flywheel_tasks.rewards.encoding import Limits, reward_tokenizer
from flywheel_tasks.settings import SPLITS
from flywheel_tasks.storage.tables import read_rows, write_rows
from tests.evaluation.handmade import replies

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPTS = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "conversation_id", "user_id", "source", "card_id")]
    + [
        ("turn", pa.int64()),
        ("history", pa.list_(TURN)),
        ("reply", pa.string()),
        ("reply_model", pa.string()),
    ]
    + [("signals", pa.list_(pa.string()))]
)
CARDS = pa.schema(
    [("card_id", pa.string()), ("name", pa.string())]
    + [(name, pa.list_(pa.string())) for name in ("traits", "instructions")]
)
SMALL = {
    "compute.threads": 1,
    "prompt.max_tokens": 64,
    "sampling.max_new_tokens": 8,
    "rl.length_limit": 8,
    "evaluate.prompts": 8,
    "evaluate.samples": 2,
}


def prompt(index: int, user: str, split: str) -> dict[str, Any]:
    return {
        "prompt_id": f"{split}-{index:02}",
        "conversation_id": f"{split}-c{index}",
        "user_id": user,
        "source": "user" if index % 2 else "internal",
        "card_id": f"c{index % 2}",
        "turn": 1,
        "history": [{"role": "user", "content": f"Tell me story {index}."}],
        "reply": None,
        "reply_model": None,
        "signals": [],
    }


def write_judge(base: Path, folder: Path, kind: Any) -> None:
    torch.manual_seed(3)
    config = LlamaConfig.from_pretrained(base)
    tokenizer = reward_tokenizer(base)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Limits(kind, 128, 64).save(folder)


@pytest.fixture
def evaluate_io(make_io: Callable[..., Any], tiny_models: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(
        leak: str | None = None, same: bool = False, cards: int = 2, suites: tuple[str, ...] = ()
    ) -> Any:
        io = make_io("evaluate", tmp_path, SMALL | {"evaluate.suites": list(suites)})
        base = tiny_models / "base"
        shutil.copytree(base, tmp_path / "inputs/champion")
        shutil.copytree(base, tmp_path / "models/policy")
        if not same:
            model = AutoModelForCausalLM.from_pretrained(base)
            torch.manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
            model.save_pretrained(tmp_path / "models/policy")
        (tmp_path / "models/embedder").symlink_to(tiny_models / "embedder")
        write_judge(base, tmp_path / "models/pointwise_rm", "pointwise")
        write_judge(base, tmp_path / "models/pairwise_rm", "pairwise")
        for split in SPLITS:
            rows = [prompt(i, f"{split}-u{i // 4}-{i % 2}", split) for i in range(12)]
            if split == leak:
                rows[0]["user_id"] = "evaluation-u0-0"
            write_rows(rows, PROMPTS, tmp_path / f"data/split/{split}.parquet")
        rules = ["Never use emoji.", "Be kind."]
        found = [
            {"card_id": f"c{i}", "name": f"N{i}", "traits": ["calm"], "instructions": rules}
            for i in range(cards)
        ]
        write_rows(found, CARDS, tmp_path / "data/curated/cards.parquet")
        return io

    return make


def test_rows_and_metrics_twice_the_same(evaluate_io: Callable[..., Any]) -> None:
    io = evaluate_io(suites=("over_refusal", "pushing"))
    metrics = run(io)
    rows = read_rows(io.out("data/evaluation") / "replies.parquet")
    assert len(rows) == 8 * 2
    assert [row["prompt_id"] for row in rows] == sorted(row["prompt_id"] for row in rows)
    assert any(row["champion_reply"] != row["candidate_reply"] for row in rows)
    assert metrics["prompts"] == {"user": 4, "internal": 4, "all": 8}

    def score(row: dict[str, Any]) -> float:
        gain = row["candidate_reward"] - row["champion_reward"]
        return 0.5 if gain == 0 or row["champion_reply"] == row["candidate_reply"] else float(gain > 0)

    for source in ("user", "internal"):
        scores = [score(row) for row in rows if row["source"] == source]
        assert metrics["win_rate"]["pointwise"][source]["value"] == pytest.approx(sum(scores) / len(scores))
        assert metrics["win_rate"]["pointwise"][source]["n"] == 8
    wins = [float(row["pairwise_p"] > 0.5) for row in rows if row["champion_reply"] != row["candidate_reply"]]
    ties = len(rows) - len(wins)
    assert metrics["win_rate"]["pairwise"]["all"]["value"] == pytest.approx(
        (sum(wins) + ties / 2) / len(rows)
    )
    assert set(metrics["production"]["false_refusal"]) == {"champion", "candidate"}
    assert metrics["instructions"] == {"checked": 2, "unchecked": 2}
    assert metrics["cut_short"] == {"prompts": 8, "card": 0, "last_turn": 0}
    assert metrics["production"]["withheld"]["candidate"]["n"] == 16, "the safety classifier was asked"
    limited = metrics["production"]["at_limit"]["candidate"]["value"]
    assert limited > 0.5, "a random policy seldom ends by itself, within a few tokens"
    assert metrics["production"]["tokens"]["candidate"]["value"] > 1
    assert set(metrics["suites"]) == {"over_refusal", "pushing"}
    assert metrics["suites"]["pushing"]["unseen_cards"]["instruction_following"]["n"] >= 20
    assert metrics["refusal_detector"]["by"] == "rules"
    assert metrics["refusal_detector"]["why"]  # the tiny embedder is none that a detector was trained on
    assert metrics["unseen"]["characters"]["candidate"]["reason"]
    assert metrics["suites"]["over_refusal"]["n"] >= 40
    assert metrics["judge"] == "none"
    assert 0 < metrics["production"]["tokens"]["candidate"]["value"] <= 8 * 2

    shutil.rmtree(io.out("data/evaluation"))
    assert run(io) == metrics
    assert read_rows(io.out("data/evaluation") / "replies.parquet") == rows


def test_a_judge_is_asked_once_and_again_not_after_a_kill(
    evaluate_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyOfChampions:
        name, identity, asked = "j", "j", 0

        def yes(self, prompts: list[str]) -> list[float | None]:
            type(self).asked += len(prompts)
            return [None if self.asked > 16 * 5 else 0.0] * len(prompts)

    monkeypatch.setattr(evaluate, "open_judge", lambda *_: OnlyOfChampions())
    io = evaluate_io()
    metrics = run(io)
    asked = OnlyOfChampions.asked
    assert metrics["judge"] == "j"
    for name in ("cooperation", "safety_violation", "instruction_following"):
        assert metrics["change"][name]["value"] is None, "the judge was silent on one policy's replies"
        assert "gave no usable answer to 16 of 16" in metrics["change"][name]["reason"]
    assert "counted as unsafe" in metrics["production"]["safety_violation"]["candidate"]["reason"]
    shutil.rmtree(io.out("data/evaluation"))
    assert run(io) == metrics
    assert OnlyOfChampions.asked == asked > 16 * 5


def test_a_model_against_itself_is_a_tie(evaluate_io: Callable[..., Any]) -> None:
    metrics = run(evaluate_io(same=True))
    assert metrics["identical"]["value"] == 1
    for judge in ("pointwise", "pairwise"):
        assert all(rate["value"] == 0.5 for rate in metrics["win_rate"][judge].values())
        assert metrics["divergence"][judge]["value"] == 0


def test_a_leaked_user_stops_the_stage_before_any_reply(
    evaluate_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Sampler", None)
    with pytest.raises(LeakError, match=r"policy_train\.parquet share 1 users \(evaluation-u0-0\)"):
        run(evaluate_io(leak="policy_train"))


def test_a_prompt_without_its_card_is_an_error(evaluate_io: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"card c1 is not in .*cards\.parquet"):
        run(evaluate_io(cards=1))


@pytest.mark.parametrize("column", ["champion_reward", "candidate_reward", "pairwise_p"])
def test_no_number_never_becomes_a_metric(column: str) -> None:
    rows = replies()
    rows[3][column] = float("nan")
    drawn = {side: [Reply("Aye.", 5, True)] * len(rows) for side in ("champion", "candidate")}
    with pytest.raises(ValueError, match=r"finite|between 0 and 1"):
        evaluate.measure(rows, drawn)


def test_a_tool_call_that_the_token_limit_cuts_off_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    class CutOff(Sampler):
        def __init__(self, *_: Any, **__: Any) -> None:
            cut = 'Sure! <tool_call>{"name": "draw_picture", "arguments": {"prompt": "a red boat'
            self.tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: [cut] * len(rows))
            self.end_ids = frozenset({2})

        def sample_ids(self, prompts: Any, *_: Any, **__: Any) -> list[list[list[int]]]:
            return [[[5, 6]] for _ in prompts]

    monkeypatch.setattr(evaluate, "Sampler", CutOff)
    monkeypatch.setattr("flywheel_tasks.policy.sampler.prompt_ids", lambda *_: [1])
    CutOff.max_prompt_tokens = 64
    settings = SimpleNamespace(
        evaluate=SimpleNamespace(suites=["tool_calls"]),
        sampling=None,
        compute=None,
        prompt=SimpleNamespace(max_tokens=64),
        seed=1,
    )
    io: Any = SimpleNamespace(settings=settings, dep=Path)
    found = evaluate._suites(io, {"c": Card("c", "Mae", (), ())}, None, Rules())["tool_calls"]
    assert found["malformed"]["value"] == 1
