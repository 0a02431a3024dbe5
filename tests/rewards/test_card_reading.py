"""Pairs whose order only the card's instructions tell."""

from collections import Counter
from dataclasses import replace

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.instructions import checks, share_kept
from flywheel_tasks.rewards.agreement import preferred
from flywheel_tasks.rewards.pairs import Pair
from flywheel_tasks.rewards.swapped_rules import told_by, under_other_rules

RULES = (
    ("Always end with a question.",),
    ("Never ask a question.", "No emoji."),
    ("Write in lower case only.",),
    ("Never use exclamation marks.",),
    ("Use at most 5 words.", "Be kind."),
    ("Use at least 8 words.",),
    ("Be wise.",),
)
REPLIES = (
    "What did the sea tell you?",
    "The sea tells me nothing today, and I have asked it for years!",
    "no. the boat is mine.",
    "Stay! I made soup for both of us. Will you eat?",
    "i am fine 🙂",
)


def pairs(prompts: int = 12) -> list[Pair]:
    """Each prompt with three couples of replies, each card with the next rules."""
    return [
        Pair(
            pair_id=f"p{prompt}-{place}",
            prompt_id=f"p{prompt}",
            user_id=f"u{prompt // 2}",
            card=Card(f"c{prompt}", f"Mira {prompt}", ("calm",), RULES[prompt % len(RULES)]),
            history=({"role": "user", "content": "Hello."},),
            chosen=REPLIES[(prompt + place) % len(REPLIES)],
            rejected=REPLIES[(prompt + place + 1) % len(REPLIES)],
            kind="ranking",
            consensus=True,
            one_review=1.0,
        )
        for prompt in range(prompts)
        for place in range(3)
    ]


def test_each_twin_is_the_same_couple_under_rules_that_say_the_opposite() -> None:
    own = {frozenset((pair.chosen, pair.rejected)) | {pair.prompt_id} for pair in pairs()}
    found = under_other_rules(pairs(), 1000, seed=3)
    assert len(found) > 20
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.prompt_id == other.prompt_id
        assert {one.chosen, one.rejected, one.prompt_id} in own
        assert replace(one.card, instructions=()) == replace(other.card, instructions=())  # the persona stays
        for pair in (one, other):
            assert pair.card.instructions in RULES
            assert told_by(checks(pair.card), pair.chosen, pair.rejected).sign == 1
    assert len({pair.pair_id for pair in found}) == len(found)
    assert {(pair.kind, pair.consensus, pair.one_review) for pair in found} == {("rules", False, None)}


def test_a_reader_is_right_on_all_and_whoever_looks_at_the_reply_alone_on_half() -> None:
    found = under_other_rules(pairs(), 1000, seed=3)

    def reads(pair: Pair, reply: str) -> float:
        return share_kept(pair.card, reply) or 0.0

    def likes_questions(pair: Pair, reply: str) -> float:
        return reply.count("?") - 0.01 * len(reply)

    right = {
        judge: preferred([judge(pair, pair.chosen) - judge(pair, pair.rejected) for pair in found])
        for judge in (reads, likes_questions)
    }
    assert set(right[reads]) == {1.0}
    assert sum(right[likes_questions]) == len(found) / 2


def test_which_side_people_preferred_plays_no_part() -> None:
    turned = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs()]
    one, other = under_other_rules(pairs(), 1000, seed=3), under_other_rules(turned, 1000, seed=3)

    def texts(found: list[Pair]) -> set[tuple[str, ...]]:
        return {(pair.prompt_id, pair.chosen, pair.rejected, *pair.card.instructions) for pair in found}

    assert texts(one) == texts(other)


def test_most_is_kept_in_whole_twins_and_the_seed_draws() -> None:
    assert len(under_other_rules(pairs(), 7, seed=3)) == 6
    assert under_other_rules(pairs(), 40, seed=3) == under_other_rules(list(reversed(pairs())), 40, seed=3)
    assert under_other_rules(pairs(), 10, seed=3) != under_other_rules(pairs(), 10, seed=4)


def test_several_kinds_of_rules_are_asked() -> None:
    found = under_other_rules(pairs(30), 1000, seed=3)
    kinds = Counter(
        kind for pair in found for kind in told_by(checks(pair.card), pair.chosen, pair.rejected).kinds
    )
    assert len(kinds) >= 5
    assert max(kinds.values()) < len(found) / 2


def test_cards_that_code_cannot_read_or_that_are_all_alike_ask_nothing() -> None:
    unread = [replace(pair, card=replace(pair.card, instructions=("Be wise.",))) for pair in pairs()]
    alike = [replace(pair, card=replace(pair.card, instructions=RULES[0])) for pair in pairs()]
    assert under_other_rules([], 10, seed=3) == []
    assert under_other_rules(unread, 10, seed=3) == []
    assert under_other_rules(alike, 10, seed=3) == []
