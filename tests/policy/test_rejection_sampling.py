import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.rejection_sampling import (
    Candidate,
    NothingAcceptedError,
    Thresholds,
    candidates_of,
    decide,
    mark_unusable,
    run,
    thresholds,
)
from flywheel_tasks.policy.sampler import Reply
from flywheel_tasks.settings import RejectionSample
from flywheel_tasks.storage.tables import read_rows

PROMPT = Prompt("p1", "user", Card("c1", "Mira", (), ()), ({"role": "user", "content": "Hi"},))


def candidate(name: str, reward: float | None, **signals: float) -> Candidate:
    return Candidate(PROMPT, name, "champion", name, False, reward, dict(signals))


def test_the_best_is_kept_and_the_others_say_why_not() -> None:
    rows = [candidate("a", 0.1), candidate("b", 0.9), candidate("c", 0.5)]
    assert decide(rows, Thresholds(0.4, {})) is rows[1]
    assert [row.reason for row in rows] == ["not_best", "best_of_n", "not_best"]


def test_a_best_below_the_reward_threshold_drops_its_prompt() -> None:
    rows = [candidate("a", 0.1), candidate("b", 0.3)]
    assert decide(rows, Thresholds(0.4, {})) is None
    assert [row.reason for row in rows] == ["not_best", "below_reward_threshold"]


def test_nan_never_passes() -> None:
    assert decide([candidate("a", math.nan)], Thresholds(0.4, {})) is None
    assert decide([candidate("a", 1.0, thumb_up=math.nan)], Thresholds(0.4, {"thumb_up": 0.0})) is None


def test_signal_thresholds_count_only_where_there_is_a_model() -> None:
    limits = Thresholds(0.0, {"continue": 0.5, "thumb_up": 0.5})
    low = candidate("a", 1.0, **{"continue": 0.4})
    assert decide([low], limits) is None
    assert low.reason == "below_p_continue"
    assert decide([candidate("b", 1.0, **{"continue": 0.6})], limits) is not None


def test_empty_cut_off_and_repeated_replies_are_not_scored() -> None:
    rows = candidates_of(
        PROMPT,
        "champion",
        [
            Reply("Yes.", 2, True),
            Reply("Yes.  ", 2, True),
            Reply("", 0, True),
            Reply("I was going to", 4, False),
            Reply("It is 3.5 miles. Then we", 9, False),
        ],
    )
    mark_unusable(rows)
    assert [row.reason for row in rows] == ["", "duplicate", "empty", "cut_off", ""]
    assert rows[-1].text == "It is 3.5 miles."
    assert len({row.candidate_id for row in rows}) == 5


def test_the_reward_threshold_is_a_quantile_of_all_rewards_and_unused_signals_have_none() -> None:
    section = RejectionSample(
        prompts=1, candidates=2, min_reward_quantile=0.75, min_continue=0.3, min_thumb_up=0.4
    )
    rows = [candidate(str(n), float(n)) for n in range(5)] + [candidate("x", None)]
    assert thresholds(rows, section, ["thumb_up"]) == Thresholds(3.0, {"thumb_up": 0.4})


def test_stage(policy_io: Callable[..., Any]) -> None:
    # Random weights seldom end a sentence; a low quantile keeps what does not stop at once.
    io = policy_io(
        "rejection_sample", {"rejection_sample.min_reward_quantile": 0.0, "sampling.max_new_tokens": 40}
    )
    end_early(io.root / "inputs/champion")
    metrics = run(io)
    rows = read_rows(io.out("data/rejection") / "candidates.parquet")
    accepted = read_rows(io.out("data/rejection") / "accepted.parquet")
    assert len(rows) == metrics["candidates"] == 18
    assert metrics["accepted"]["all"] == len(accepted) > 0
    assert metrics["reasons"] == Counter(row["reason"] for row in rows)
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
        assert (row["reward"] is None) == (row["reason"] in {"empty", "cut_off", "duplicate"})
        assert (row["p_continue"] is None) == (row["reward"] is None)
        assert row["p_thumb_up"] is None
    for reply in accepted:
        rewards = [r["reward"] for r in by_prompt[reply["prompt_id"]] if r["reward"] is not None]
        assert reply["reward"] == max(rewards)
        assert reply["history"][-1]["role"] == "user"
    assert metrics["signal_models"]["continue"] == 1
    assert metrics["signal_models"]["thumb_up"] == 0
    assert metrics["thresholds"]["p_thumb_up"] is None
    # Both sources are sampled, in their share of the split (a quarter is internal).
    assert set(metrics["prompts_by_source"]) == {"internal", "user"}


def test_nothing_accepted_is_an_error_that_counts_why(policy_io: Callable[..., Any]) -> None:
    io = policy_io("rejection_sample", {"rejection_sample.min_continue": 1.0, "sampling.max_new_tokens": 40})
    end_early(io.root / "inputs/champion")
    with pytest.raises(NothingAcceptedError, match=r"none of 18 candidates .*below_p_continue \d"):
        run(io)


def end_early(folder: Any) -> None:
    """Let many tokens of a random model end a reply, so that some replies are whole."""
    from transformers import GenerationConfig

    config = GenerationConfig.from_pretrained(folder)
    config.eos_token_id = [2, *range(3, 49152, 10)]
    config.save_pretrained(folder)
