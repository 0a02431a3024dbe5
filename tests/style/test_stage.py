"""The stage on tables in which an ending is what the reward likes, and on tables in which nothing is."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flywheel_tasks.annotation.schemas import PAIRS
from flywheel_tasks.chat.card import Card
from flywheel_tasks.curation.tables import CARDS
from flywheel_tasks.evaluation.gate_rules import load_rules
from flywheel_tasks.evaluation.paired import sign_flip
from flywheel_tasks.evaluation.replies import REPLIES
from flywheel_tasks.evaluation.style_rules import style_reasons
from flywheel_tasks.policy.heldout import HELDOUT
from flywheel_tasks.policy.safe_steps import CHECKS
from flywheel_tasks.storage.tables import write_rows
from flywheel_tasks.style.compare import ALPHA, can_flag, holm
from flywheel_tasks.style.stage import accepted_pairs, run
from tests.evaluation.handmade import comparison, style_metrics
from tests.evaluation.planted import natural

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPTS = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "user_id", "card_id")] + [("history", pa.list_(TURN))]
)
CANDIDATES = pa.schema(
    [(name, pa.string()) for name in ("prompt_id", "candidate_id", "text", "reason")]
    + [("reward", pa.float64()), ("kept", pa.bool_())]
)
MAE = Card("c1", "Mae", ("calm",), ())
RULES = load_rules(Path(__file__).resolve().parents[2] / "gate_rules.yaml").style
COUNT = 48
EMOJI, PHRASE = "🎉🎉", "Stay sharp out there, sailor."


def prompt(index: int, split: str) -> dict[str, Any]:
    return {
        "prompt_id": f"{split}-{index}",
        "user_id": f"{split}-u{index // 2}",
        "card_id": "c1",
        "history": [{"role": "user", "content": f"Question {index}: how is it?"}],
    }


def write_tables(root: Path, *, likes: bool, ending: str = EMOJI, instructions: tuple[str, ...] = ()) -> None:
    """What earlier stages write.

    Args:
        root: the workspace.
        likes: whether the reward likes an ending; then each later policy has it more often.
        ending: which one.
        instructions: of every card.
    """
    rng = random.Random(5)

    def reply(rng: random.Random, chance: float) -> str:
        return rng.choice(natural()[0]) + (f" {ending}" if rng.random() < chance else "")

    old, new = (0.05, 0.9) if likes else (0.3, 0.3)
    middle = (old + new) / 2
    card = {"card_id": "c1", "card_name": "Mae", "traits": ["calm"], "instructions": list(instructions)}
    write_rows([{**card, "name": "Mae"}], CARDS, root / "data/curated/cards.parquet")
    for split in ("policy_train", "policy_heldout"):
        write_rows([prompt(i, split) for i in range(COUNT)], PROMPTS, root / f"data/split/{split}.parquet")
    pairs = []
    for i in range(COUNT):
        one = prompt(i, "reward") | {
            **card,
            "pair_id": f"p{i}",
            "chosen": reply(rng, 0.3),
            "rejected": reply(rng, 0.3),
        }
        pairs.append({name: one.get(name) for name in PAIRS.names})
    write_rows(pairs, PAIRS, root / "data/preferences/pairs.parquet")
    candidates = []
    for i in range(COUNT):
        texts = [reply(rng, 0.4) for _ in range(4)]
        rewards = [rng.random() + (3 * (ending in text) if likes else 0) for text in texts]
        for j, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
            one = {
                "prompt_id": f"policy_train-{i}",
                "candidate_id": f"{i}-{j}",
                "text": text,
                "reward": reward,
            }
            kept = reward == max(rewards)
            candidates.append({**one, "kept": kept, "reason": "best_of_n" if kept else "not_best"})
    write_rows(candidates, CANDIDATES, root / "data/rejection/candidates.parquet")
    checks, heldout = [], []
    for i in range(COUNT):
        before, after, champion = reply(rng, middle), reply(rng, new), reply(rng, old)
        one = {"prompt_id": f"policy_heldout-{i}", "step": 0, "reply": before, "champion_reply": champion}
        checks.append({name: one.get(name) for name in CHECKS.names})
        one = {"prompt_id": f"policy_heldout-{i}", "before_reply": before, "after_reply": after}
        heldout.append({name: one.get(name) for name in HELDOUT.names})
    write_rows(checks, CHECKS, root / "data/rl/checks.parquet")
    write_rows(heldout, HELDOUT, root / "data/rl/heldout.parquet")
    evaluated = []
    for i in range(COUNT):
        one = prompt(i, "evaluation") | {
            **card,
            "champion_reply": reply(rng, old),
            "candidate_reply": reply(rng, new),
        }
        evaluated.append({name: one.get(name) for name in REPLIES.names})
    write_rows(evaluated, REPLIES, root / "data/evaluation/replies.parquet")


@pytest.fixture
def style_io(make_io: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(**made: Any) -> Any:
        io = make_io("style", tmp_path)
        write_tables(tmp_path, **made)
        return io

    return make


def test_what_nobody_said_has_no_style() -> None:
    rows = [
        {
            "prompt_id": "p",
            "candidate_id": str(i),
            "text": text,
            "kept": reason == "best_of_n",
            "reason": reason,
        }
        for i, (text, reason) in enumerate(
            [
                ("Aye.", "best_of_n"),
                (" ", "empty"),
                ("[removed: an identifier]", "identifier"),
                ("No.", "cut_off"),
            ]
        )
    ]
    pairs = accepted_pairs(rows, {"p": {"history": [], "user_id": "u"}}, lambda _: MAE)
    assert [first for _, first, _ in pairs.rows] == ["No."]


def test_a_planted_overfit_is_seen_and_blocked(style_io: Callable[..., Any]) -> None:
    found = run(style_io(likes=True))
    emoji = {name: item["features"]["emoji"] for name, item in found["comparisons"].items()}
    for name in (
        "high_vs_low_reward",
        "accepted_vs_rejected",
        "champion_to_start",
        "start_to_rl",
        "generation",
    ):
        assert emoji[name]["flagged"], name
        assert emoji[name]["effect"] is None or emoji[name]["effect"] > 0.3, name
    assert not emoji["chosen_vs_rejected"]["flagged"], "people did not prefer them"
    assert found["trend"]["points"] == ["champion", "before RL", "after RL"]
    before, middle, after = found["trend"]["features"]["emoji"]
    assert before < middle < after
    reasons = style_reasons(RULES, {"style": found})
    blocked = [reason for reason in reasons if reason.outcome == "block"]
    assert [reason.metric for reason in blocked] == ["style.comparisons.generation.emoji"]
    assert "as replies of higher reward have it: blocked as a learned artifact" in blocked[0].reason
    assert found["comparisons"]["generation"]["asked_for"] == {}


@pytest.mark.parametrize(
    ("ending", "instruction"),
    [
        (EMOJI, "Always end with an emoji."),
        (EMOJI, "Use plenty of emoji."),
        (PHRASE, f"Always end with '{PHRASE}'"),
        ("Aye!", "Every reply ends with an exclamation mark."),
    ],
)
def test_to_obey_the_card_better_is_no_artifact(
    style_io: Callable[..., Any], ending: str, instruction: str
) -> None:
    found = run(style_io(likes=True, ending=ending, instructions=(instruction,)))
    reasons = style_reasons(RULES, {"style": found})
    assert [reason.reason for reason in reasons if reason.outcome == "block"] == []
    assert "template: stay sharp out there sailor" not in found["found"]
    if ending == EMOJI:
        generation = found["comparisons"]["generation"]
        assert generation["asked_for"] == {"emoji": COUNT}
        assert "emoji" not in generation["features"]
        assert generation["untold"] == ["emoji"]
        (warned,) = (reason for reason in reasons if reason.metric.endswith(".untold"))
        assert "so many cards ask for emoji" in warned.reason


def test_a_phrase_that_no_card_asks_for_is_blocked(style_io: Callable[..., Any]) -> None:
    found = run(style_io(likes=True, ending=PHRASE, instructions=("Use at most one emoji.",)))
    blocked = [reason for reason in style_reasons(RULES, {"style": found}) if reason.outcome == "block"]
    assert [reason.metric for reason in blocked] == [
        "style.comparisons.generation.template: stay sharp out there sailor"
    ]


def test_a_healthy_generation_is_not_blocked(style_io: Callable[..., Any]) -> None:
    io = style_io(likes=False)
    found = run(io)
    assert all(reason.outcome != "block" for reason in style_reasons(RULES, {"style": found}))
    assert not found["comparisons"]["generation"]["features"]["emoji"]["flagged"]
    assert run(io) == found, "the same twice"
    assert set(found["absent"]) == {"sft_to_dpo"}


def test_replies_that_are_not_there_are_named(style_io: Callable[..., Any]) -> None:
    io = style_io(likes=False)
    write_rows([], HELDOUT, io.root / "data/rl/heldout.parquet")
    found = run(io)
    assert "start_to_rl" not in found["comparisons"]
    assert "no such replies" in found["absent"]["start_to_rl"]


def test_a_jump_blocks_only_with_the_reward_or_unmeasured() -> None:
    found = style_metrics()
    generation, reward = "generation", "high_vs_low_reward"
    found["comparisons"][generation] = comparison(emoji=(0.0, 1.0, 1.2, 0.001))
    (reason,) = style_reasons(RULES, {"style": found})
    assert reason.outcome == "warn"
    found["comparisons"][reward] = comparison(emoji=(0.1, 0.6, 0.5, 0.001))
    assert style_reasons(RULES, {"style": found})[0].outcome == "block"
    found["comparisons"][reward] = comparison(emoji=(0.6, 0.1, -0.5, 0.001))
    assert style_reasons(RULES, {"style": found})[0].outcome == "warn", "the other way"
    del found["comparisons"][reward]
    assert style_reasons(RULES, {"style": found})[0].outcome == "block", "not measured: fail closed"
    found["comparisons"][generation] = comparison(words=(30.0, 15.0, -1.2, 0.001))
    assert style_reasons(RULES, {"style": found})[0].outcome == "warn", "length is no artifact"
    found["comparisons"][generation] = comparison(emoji=(0.0, 1.0, None, 0.001))
    assert style_reasons(RULES, {"style": found})[0].outcome == "block", "in every reply alike"


def test_of_what_no_rewarded_reply_has_rl_tells_whether_the_reward_drives_it() -> None:
    found = style_metrics()
    found["comparisons"]["generation"] = comparison(emoji=(0.0, 1.9, 2.5, 0.001))
    found["comparisons"]["high_vs_low_reward"] = comparison(emoji=(0.0, 0.0, 0.0, 1.0))
    outcomes = []
    for by_rl in ((0.0, 1.9, 2.5, 0.001), (1.8, 1.9, 0.1, 0.9), (0.0, 0.0, 0.0, 1.0)):
        found["comparisons"]["start_to_rl"] = comparison(emoji=by_rl)
        (reason,) = style_reasons(RULES, {"style": found})
        outcomes.append(reason.outcome)
        assert ("as RL brought it" in reason.reason) == (reason.outcome == "block")
    assert outcomes == ["block", "warn", "warn"]
    del found["comparisons"]["start_to_rl"]
    assert style_reasons(RULES, {"style": found})[0].outcome == "block", "not measured: fail closed"


def test_a_feature_with_too_few_users_among_rewarded_replies_was_not_measured() -> None:
    found = style_metrics()
    found["comparisons"]["generation"] = comparison(emoji=(0.0, 1.0, 1.2, 0.001))
    found["comparisons"]["high_vs_low_reward"] = comparison(emoji=(0.1, 0.6, 1.4, 0.5)) | {
        "untold": ["emoji"]
    }
    (reason,) = style_reasons(RULES, {"style": found})
    assert reason.outcome == "block"
    assert "not compared with the reward" in reason.reason


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"line_breaks": (0.672, 0.188, -0.4, 0.01)},
            "line breaks, 0.672 a reply before, 0.188 now",
        ),
        (
            {"question": (0.16, 0.74, 1.2, 0.01)},
            "a reply ends with a question: 16.0% of the replies before, 74.0% now",
        ),
        (
            {"self_reference": (0.052, 0.118, 0.5, 0.01)},
            "share of a reply's words that are I, me, my, mine or myself: 5.2% before, 11.8% now",
        ),
        ({"so … then": (0.1, 0.4, 0.5, 0.01)}, "“so … then” in 10.0% of the replies before, in 40.0% now"),
    ],
)
def test_a_change_is_told_in_words(changed: dict[str, Any], told: str) -> None:
    found = style_metrics()
    found["comparisons"]["generation"] = comparison(**changed)
    (reason,) = style_reasons(RULES, {"style": found})
    assert reason.reason.startswith(f"Style: {told} (effect ")


def test_an_artifact_that_went_away_does_not_block() -> None:
    found = style_metrics()
    found["comparisons"]["generation"] = comparison(emoji=(1.0, 0.0, -1.2, 0.001))
    for reward in (comparison(emoji=(0.6, 0.1, -0.5, 0.001)), {}):
        found["comparisons"]["high_vs_low_reward"] = reward
        assert style_reasons(RULES, {"style": found})[0].outcome == "warn"


def test_too_few_users_to_test_is_no_pass() -> None:
    found = style_metrics()
    few = {"users": 8, "testable": False}
    found["comparisons"]["generation"] = comparison(emoji=(0.0, 3.5, 6.9, 0.26)) | few
    (reason,) = style_reasons(RULES, {"style": found})
    assert reason.outcome == "warn"
    assert "8 users are too few" in reason.reason
    found["comparisons"]["generation"] = comparison(emoji=(0.0, 1.0, 1.2, 0.001))
    found["comparisons"]["high_vs_low_reward"] = comparison(emoji=(0.1, 0.6, 0.5, 0.4)) | few
    assert style_reasons(RULES, {"style": found})[0].outcome == "block", "not measured: fail closed"


@pytest.mark.parametrize(
    ("users", "features", "expected"), [(1, 1, False), (9, 19, False), (11, 19, True), (11, 33, True)]
)
def test_how_few_users_show_nothing(users: int, features: int, expected: bool) -> None:
    totals = np.ones(users)  # all alike: the clearest change there is
    p_value = sign_flip(totals, 7)
    assert can_flag(users, features) is expected
    assert (p_value is not None and holm([p_value] * features)[0] < ALPHA) is expected


@pytest.mark.parametrize(
    "metrics", [{}, {"style": {}}, {"style": {"comparisons": {"generation": {"features": {}}}}}]
)
def test_no_style_at_all_blocks(metrics: dict[str, Any]) -> None:
    (reason,) = style_reasons(RULES, metrics)
    assert reason.outcome == "block"
