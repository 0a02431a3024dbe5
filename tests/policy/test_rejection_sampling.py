import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from flywheel_tasks.chat.card import Card
from flywheel_tasks.policy import rejection_sampling
from flywheel_tasks.policy.candidates import (
    REMOVED,
    Candidate,
    Thresholds,
    candidates_of,
    decide,
    mark_disobedient,
    mark_templated,
    mark_unsafe,
    mark_unusable,
    thresholds,
)
from flywheel_tasks.policy.pool import Chunk, LocalPolicy, PoolError
from flywheel_tasks.policy.prompts import Prompt
from flywheel_tasks.policy.rejection_sampling import NothingAcceptedError, run
from flywheel_tasks.policy.reply import Reply
from flywheel_tasks.settings import RejectionSample, load_settings
from flywheel_tasks.storage.digests import tree_digest
from flywheel_tasks.storage.tables import read_rows
from tests.conftest import PROJECT
from tests.policy.conftest import pin_pool

# Random weights seldom end a sentence; a low quantile keeps what does not stop at once.
SHORT = {"rejection_sample.min_reward_quantile": 0.0, "sampling.max_new_tokens": 20}
PROMPT = Prompt("p1", "user", Card("c1", "Mira", (), ()), ({"role": "user", "content": "Hi"},))


OWN = (
    "The moon owes me a favour.",
    "Flour on my sleeves again, as every night.",
    "Salt gets into everything I love.",
    "Pip told the hedge, and the hedge told me.",
    "Four springs broke before noon.",
    "Mint first, then patience.",
)


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


def test_a_cut_or_broken_tool_call_is_not_learned() -> None:
    whole = '<tool_call>{"name": "draw_picture", "arguments": {"prompt": "A lighthouse. Waves."}}</tool_call>'
    cut = '<tool_call>{"name": "draw_picture", "arguments": {"prompt": "A lighthouse at dusk. Waves roll'
    replies = [
        Reply(whole, 30, True),
        Reply(cut, 40, False),
        Reply(f"Here you are. {whole}", 40, True),
        Reply(f"{whole} There you are. And", 40, False),
        Reply(cut, 39, True),
    ]
    rows = candidates_of(PROMPT, "champion", replies)
    mark_unusable(rows)
    assert [row.reason for row in rows] == ["", "cut_off", "broken_tool_call", "cut_off", "broken_tool_call"]
    assert [row.text for row in rows] == [reply.text for reply in replies], (
        "half a call has no whole sentence"
    )


def test_what_the_gateway_would_withhold_is_not_learned() -> None:
    rows = candidates_of(
        PROMPT, "champion", [Reply(text, 2, True) for text in ("Aye.", "How to brew it: ...", "")]
    )
    mark_unusable(rows)
    mark_unsafe(rows, {"How to brew it: ...", ""})
    assert [row.reason for row in rows] == ["", "unsafe", "empty"]


def test_a_reply_with_an_identifier_is_not_even_kept_in_the_table() -> None:
    rows = candidates_of(
        PROMPT, "champion", [Reply(text, 2, True) for text in ("Aye.", "Ring 07911 123456.")]
    )
    mark_unusable(rows, {"Ring 07911 123456."})
    assert [(row.reason, row.text) for row in rows] == [("", "Aye."), ("identifier", REMOVED)]


def test_candidates_are_looked_at_by_both_scans(
    policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(policy: Any, chats: Sequence[Any], n: int, *_: Any) -> list[list[Reply]]:
        return [
            [Reply("Aye, captain.", 3, True), Reply("My cell is 415.555.2671, call!", 9, True)] for _ in chats
        ]

    monkeypatch.setattr(rejection_sampling, "draw", drawn)
    metrics = run(io := policy_io("rejection_sample", SHORT | {"rejection_sample.drop_templated": False}))
    assert metrics["reasons"]["identifier"] == metrics["candidates"] / 2
    assert "415" not in str(read_rows(io.out("data/rejection") / "candidates.parquet"))


def _obedience(section: dict[str, Any], *texts: str, instructions: tuple[str, ...]) -> list[str]:
    prompt = Prompt("p1", "user", Card("c1", "Mira", (), instructions), PROMPT.history)
    rows = [Candidate(prompt, str(number), "champion", text, False) for number, text in enumerate(texts)]
    rows[-1].reason = "duplicate"
    settings = load_settings(PROJECT / "params.yaml").rejection_sample.model_copy(update=section)
    mark_disobedient(rows, settings)
    return [row.reason for row in rows]


def test_only_those_that_keep_most_of_the_card_are_scored() -> None:
    card = ("Always end with a question.", "Write in lower case only.")
    texts = ("What a day. Is it?", "what a day. is it?", "what a day.", "What a day.", "what?")
    most = {"most_instructions": True, "min_instructions": 0.0}
    fewer = "keeps_fewer_instructions"
    assert _obedience(most, *texts, instructions=card) == [fewer, "", fewer, fewer, "duplicate"]
    brief = ("Use at most 3 words.",)
    assert _obedience(most, "Is it so?", "月はきれいですね", "x", instructions=brief)[1] == fewer
    least = {"most_instructions": False, "min_instructions": 0.5}
    assert _obedience(least, *texts, instructions=card) == ["", "", "", "below_instructions", "duplicate"]
    both = {"most_instructions": True, "min_instructions": 0.5}
    assert _obedience(both, texts[0], texts[3], texts[4], instructions=card) == [
        "",
        "below_instructions",
        "duplicate",
    ]


def test_what_recurs_over_the_prompts_is_not_kept() -> None:
    words = ("moon", "bread", "sea", "robin", "clock", "tea")
    prompts = [replace(PROMPT, prompt_id=f"p{n}") for n in range(len(words))]
    stock = [
        Candidate(prompt, f"{n}a", "champion", f"Yes. What happens with the {word} next?", False)
        for n, (prompt, word) in enumerate(zip(prompts, words, strict=True))
    ]
    own = [
        Candidate(prompt, f"{n}b", "champion", text, False)
        for n, (prompt, text) in enumerate(zip(prompts, OWN, strict=True))
    ]
    stock[0].reason = "cut_off"
    mark_templated([*stock, *own])
    assert [one.reason for one in stock] == ["cut_off", *["templated"] * 5]
    assert [one.reason for one in own] == [""] * 6


def test_a_card_that_code_cannot_check_is_left_to_the_reward_model() -> None:
    strict = {"most_instructions": True, "min_instructions": 1.0}
    assert _obedience(strict, "Hm.", "No.", "No.", instructions=("Be warm.",)) == ["", "", "duplicate"]


def test_the_reward_threshold_is_a_quantile_of_all_rewards_and_unused_signals_have_none() -> None:
    section = RejectionSample(
        pool=("champion",),
        prompts=1,
        candidates=2,
        min_reward_quantile=0.75,
        min_continue=0.3,
        min_thumb_up=0.4,
        min_instructions=0.0,
        most_instructions=True,
        drop_templated=False,
    )
    rows = [candidate(str(n), float(n)) for n in range(5)] + [candidate("x", None)]
    assert thresholds(rows, section, ["thumb_up"]) == Thresholds(3.0, {"thumb_up": 0.4})


def test_stage(policy_io: Callable[..., Any], tiny_models: Path) -> None:
    teacher = {"name": "teacher", "model": str(tiny_models / "talker")}
    io = policy_io("rejection_sample", SHORT | {"rejection_sample.pool": ["champion", "previous", teacher]})
    end_early(io.root, teacher=tiny_models / "talker")
    metrics = run(io)
    rows = read_rows(io.out("data/rejection") / "candidates.parquet")
    accepted = read_rows(io.out("data/rejection") / "accepted.parquet")
    assert len(rows) == metrics["candidates"] == 36
    assert len({row["candidate_id"] for row in rows}) == 36
    # There is no champion before this one; the others answer every prompt, each by its name and its weights.
    assert Counter(row["policy"].partition("@")[0] for row in rows) == {"champion": 18, "teacher": 18}
    assert len({row["policy"] for row in rows}) == 2
    by_policy = metrics["by_policy"]
    assert {name: part["candidates"] for name, part in by_policy.items()} == {"champion": 18, "teacher": 18}
    assert sum(part["accepted"] for part in by_policy.values()) == len(accepted)
    assert metrics["accepted"]["all"] == len(accepted) > 0
    assert metrics["cut_short"] == {"prompts": 6, "card": 0, "last_turn": 0}
    assert metrics["reasons"] == Counter(row["reason"] for row in rows)
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
        assert (row["reward"] is None) == (
            row["reason"] in {"empty", "cut_off", "duplicate", "keeps_fewer_instructions"}
        )
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


def test_the_safety_classifier_is_asked_about_every_candidate_that_could_be_learned(
    policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    io = policy_io("rejection_sample", SHORT)
    end_early(io.root)
    asked: list[str] = []

    def refuse_first(classifier: Any, texts: Sequence[str], threshold: float) -> dict[str, str]:
        asked.extend(texts)
        return {texts[0]: "harm"}

    monkeypatch.setattr(rejection_sampling, "unsafe", refuse_first)
    metrics = run(io)
    rows = read_rows(io.out("data/rejection") / "candidates.parquet")
    refused = [row for row in rows if row["text"] == asked[0] and row["reason"] != "duplicate"]
    assert {row["reason"] for row in refused} == {"unsafe"}
    assert {row["reward"] for row in refused} == {None}
    assert metrics["reasons"]["unsafe"] == len(refused)
    assert asked[0] not in [row["reply"] for row in read_rows(io.out("data/rejection") / "accepted.parquet")]


def test_a_killed_run_draws_only_what_is_missing_and_ends_the_same(
    policy_io: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def io(name: str) -> Any:
        made = policy_io("rejection_sample", SHORT, root=tmp_path / name)
        end_early(made.root)
        return made

    whole = io("whole")
    metrics = run(whole)
    calls: list[int] = []
    draw = LocalPolicy.draw

    def dies(self: LocalPolicy, chunks: Sequence[Chunk], n: int) -> Any:
        for chunk in chunks:
            calls.append(len(chunk.prompts))
            if len(calls) == 2:
                raise KeyboardInterrupt
            yield from draw(self, [chunk], n)

    monkeypatch.setattr(LocalPolicy, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        run(io("killed"))
    again = io("killed")
    assert run(again) == metrics
    assert calls == [5, 1, 1]  # batches of 16 rows, three candidates a prompt, six prompts
    assert tree_digest(again.out("data/rejection")) == tree_digest(whole.out("data/rejection"))


def test_a_policy_that_is_not_what_was_pinned_is_refused(policy_io: Callable[..., Any]) -> None:
    io = policy_io("rejection_sample")
    (io.root / "inputs/champion/config.json").write_text("{}")
    with pytest.raises(PoolError, match=r"policy champion: .* pinned is"):
        run(io)


def test_nothing_accepted_is_an_error_that_counts_why(policy_io: Callable[..., Any]) -> None:
    io = policy_io("rejection_sample", SHORT | {"rejection_sample.min_continue": 1.0})
    end_early(io.root)
    with pytest.raises(NothingAcceptedError, match=r"none of 18 candidates .*below_p_continue \d"):
        run(io)


def end_early(root: Path, **folders: Path) -> None:
    """Let many tokens of the random champion end a reply, so that some replies are whole; pin the pool."""
    config = GenerationConfig.from_pretrained(root / "inputs/champion")
    config.eos_token_id = [2, *range(3, 49152, 10)]
    config.save_pretrained(root / "inputs/champion")
    pin_pool(root, **folders)
