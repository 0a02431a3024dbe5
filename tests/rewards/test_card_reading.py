"""Pairs whose order only the card's instructions tell."""

from collections import Counter
from dataclasses import replace

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.instructions import checks, instruction_checks, share_kept
from flywheel_tasks.rewards.card_reading import reading, told_by, twins
from flywheel_tasks.rewards.pairs import Pair

RULES = (
    ("Always end with a question.",),
    ("Never ask a question.", "No emoji."),
    ("Write in lower case only.",),
    ("Never use exclamation marks.",),
    ("Use at most 5 words.", "Answer at great length whenever the user wants a story."),
    ("Your name is Finn.", "You are 40 years old."),
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
    found = twins(pairs(), 1000, seed=3)
    assert len(found) > 20
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
        assert one.prompt_id == other.prompt_id
        assert {one.chosen, one.rejected, one.prompt_id} in own
        assert replace(one.card, instructions=()) == replace(other.card, instructions=())  # the persona stays
        for pair in (one, other):
            assert any(set(pair.card.instructions) <= set(rules) for rules in RULES)
            assert all(
                instruction_checks(text) for text in pair.card.instructions
            )  # what code cannot read stays out
            assert "Finn" not in str(pair.card.instructions)
            assert told_by(checks(pair.card), pair.chosen, pair.rejected).sign == 1
    assert len({pair.pair_id for pair in found}) == len(found)
    assert {(pair.kind, pair.consensus, pair.one_review) for pair in found} == {("rules", False, None)}


def margins(found: list[Pair], taste: float, reads: float) -> list[float]:
    """Of a model that likes questions so much, and replies that keep the card's rules so much."""

    def score(pair: Pair, reply: str) -> float:
        return taste * (reply.count("?") - 0.01 * len(reply)) + reads * (share_kept(pair.card, reply) or 0.0)

    return [score(pair, pair.chosen) - score(pair, pair.rejected) for pair in found]


def test_a_weak_reader_is_told_from_one_that_looks_at_the_reply_alone() -> None:
    found = twins(pairs(), 1000, seed=3)
    none, weak, strong = (
        reading(found, margins(found, taste, reads)) for taste, reads in ((9, 0), (9, 0.1), (0, 1))
    )
    assert none["twins"] == len(found) // 2
    assert (none["accuracy"]["value"], none["share"]["value"]) == (0.5, 0.5)
    assert (weak["accuracy"]["value"], weak["share"]["value"]) == (0.5, 1.0)
    assert (strong["accuracy"]["value"], strong["share"]["value"]) == (1.0, 1.0)


def test_without_twins_both_are_null_with_the_reason() -> None:
    found = reading([], [])
    assert found["twins"] == 0
    for name in ("share", "accuracy"):
        assert found[name]["value"] is None
        assert "that code can check" in found[name]["reason"]


def test_which_side_people_preferred_plays_no_part() -> None:
    turned = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs()]
    one, other = twins(pairs(), 1000, seed=3), twins(turned, 1000, seed=3)

    def texts(found: list[Pair]) -> set[tuple[str, ...]]:
        return {(pair.prompt_id, pair.chosen, pair.rejected, *pair.card.instructions) for pair in found}

    assert texts(one) == texts(other)


def test_most_is_kept_in_whole_twins_and_the_seed_draws() -> None:
    assert len(twins(pairs(), 7, seed=3)) == 6
    assert twins(pairs(), 40, seed=3) == twins(list(reversed(pairs())), 40, seed=3)
    assert twins(pairs(), 10, seed=3) != twins(pairs(), 10, seed=4)


def test_several_kinds_of_rules_are_asked() -> None:
    found = twins(pairs(30), 1000, seed=3)
    kinds = Counter(
        kind for pair in found for kind in told_by(checks(pair.card), pair.chosen, pair.rejected).kinds
    )
    assert len(kinds) >= 5
    assert max(kinds.values()) < len(found) / 2


def test_cards_that_code_cannot_read_or_that_are_all_alike_ask_nothing() -> None:
    unread = [replace(pair, card=replace(pair.card, instructions=("Be wise.",))) for pair in pairs()]
    alike = [replace(pair, card=replace(pair.card, instructions=RULES[0])) for pair in pairs()]
    assert twins([], 10, seed=3) == []
    assert twins(unread, 10, seed=3) == []
    assert twins(alike, 10, seed=3) == []
