"""The panel: a fixed set of simulated people and cards that tells how much a model is really liked.

It is known here only because the people are simulated; in life nobody has it. No traffic has these users, topics,
characters or wordings, nor the lines in which these users take up a word or complain, so nothing that learns can have
seen them; greetings and what leads up to a line ("Not really.") are those of the traffic. Its rows hold the hidden
utility: they go to the result table of a campaign and nowhere that a stage reads.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.cards import checks_of, heldout_cards, load_cards
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.events import short_id
from flywheel_tasks.simulation.population import User, bank, follow_up, make_user, opener
from flywheel_tasks.simulation.rule_sets import traffic_cards
from flywheel_tasks.simulation.traffic import Replies
from flywheel_tasks.simulation.utility import features, refuses, templated, utility
from flywheel_tasks.simulation.wording import emoji_count, words

Group = Literal["training", "characters", "wordings"]
GROUPS: tuple[Group, ...] = ("training", "characters", "wordings")
TURNS = 2
VERSION = 3  # of what it asks; rows of the first have none
_SEED = 11  # of the panel; a campaign's own seed changes nothing here
Row = dict[str, Any]


def cards_of(group: Group, rule_sets: int = 1) -> tuple[Card, ...]:
    """The cards of a group: of the traffic, unseen characters, or unseen wordings of instructions.

    Args:
        group: which.
        rule_sets: cards of each character in the traffic; of these one a character is taken, of each number as many.
    """
    if group != "training":
        return heldout_cards(group)
    cards, characters = traffic_cards(rule_sets), len(load_cards())
    return tuple(cards[(place % rule_sets) * characters + place] for place in range(characters))


def _member(number: int, cards: Sequence[Card]) -> User:
    """A person of the panel: the same taste in every group, and topics that the traffic does not have."""
    user_id = f"sim-panel-{number:04d}"
    user = make_user(_SEED, user_id, "user", cards)
    rng = random.Random(f"panel topics|{_SEED}|{user_id}")
    return replace(user, topics=tuple(rng.sample(sorted(bank()["heldout_topics"]), 3)), careless=False)


def _judge(group: Group, user: User, card: Card, history: Sequence[Turn], reply: str, turn: int) -> Row:
    obeyed = [obeys(check, reply) for check in checks_of(card)]
    return {
        "panel": VERSION,
        "group": group,
        "user_id": user.user_id,
        "card_id": card.card_id,
        "turn": turn,
        "prompt": history[-1]["content"],
        "reply": reply,
        "utility": utility(card, history, reply, user.taste),
        "instruction_following": sum(obeyed) / len(obeyed),
        "instruction_violation": not all(obeyed),
        "false_refusal": refuses(reply),
        "templated": templated(reply),
        "words": len(words(reply)),
        "emoji": emoji_count(reply),
        "features": features(card, history, reply, liked_words=user.taste.words, most_emoji=user.taste.emoji),
    }


def measure(sampler: Replies, users: int, rule_sets: int = 1, progress: bool = False) -> list[Row]:
    """Let the panel talk to a model: everybody for two turns in each group, whatever the model says.

    Nobody leaves, so every model answers as many messages. First messages are the same for every model; what a person
    says next depends on the reply.

    Args:
        sampler: of the model.
        users: people in each group, the same in all three.
        rule_sets: cards of each character in the traffic.
        progress: show a bar for each turn.

    Returns:
        one row a reply: group, user, card, turn, texts, utility by the person's own taste, and what it is made of.
    """
    talks: list[tuple[Group, User, Card, list[Turn]]] = []
    for group in GROUPS:
        cards = cards_of(group, rule_sets)
        for number in range(users):
            user, card = _member(number, cards), cards[number % len(cards)]
            first = opener(user, card, random.Random(f"panel|{_SEED}|{group}|{number}"))
            talks.append((group, user, card, [{"role": "user", "content": first}]))
    rows: list[Row] = []
    for turn in range(TURNS):
        seed = int(short_id("panel", _SEED, turn)[:8], 16)
        label = f"Panel of simulated users, turn {turn + 1} of {TURNS}" if progress else None
        drawn = sampler.sample([(card, tuple(history)) for _, _, card, history in talks], 1, seed, label)
        for (group, user, card, history), (reply,) in zip(talks, drawn, strict=True):
            row = _judge(group, user, card, history, reply, turn)
            rows.append(row)
            rng = random.Random(f"panel|{_SEED}|{group}|{user.user_id}|{turn}")
            pleasure = row["utility"] + rng.gauss(0.0, user.mood)
            history.append({"role": "assistant", "content": reply})
            history.append({"role": "user", "content": follow_up(user, history, pleasure, rng, heldout=True)})
    return rows
