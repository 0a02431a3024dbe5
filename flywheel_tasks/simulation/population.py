"""The demo's simulated users: who they are and what they say.

A user is a function of (seed, user id) alone, so that the same people come back in every run.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.utility import AVERAGE, FEATURES, Taste
from flywheel_tasks.simulation.wording import content_words, words
from flywheel_tasks.storage.fast_yaml import load_yaml

_AUXILIARIES = "do does did are is was were can could would will should have has shall am may"
_YES_NO = frozenset(_AUXILIARIES.split())
PRIVATE_SHARE = 0.1
ACTIVITY_SPREAD = 0.35  # of the logarithm; the mean is 1


@dataclass(frozen=True)
class User:
    """One simulated person.

    Attributes:
        user_id: begins with ``sim-``.
        source: ``internal`` (staff, who also probe the rules) or ``user``.
        taste: what they like in a reply.
        topics: what they talk about.
        cards: ids of the characters they talk to, the favourite first.
        patience: added to the log-odds of going on.
        generosity: scale of the chance that they give a reaction at all.
        lower: they type without capitals.
        careless: they may write private data into the chat.
        activity: scale of the chance that they open the app again.
        mood: standard deviation of the moment's noise on what they feel about a reply.
    """

    user_id: str
    source: Literal["internal", "user"]
    taste: Taste
    topics: tuple[str, ...]
    cards: tuple[str, ...]
    patience: float
    generosity: float
    lower: bool
    careless: bool
    activity: float
    mood: float


@cache
def bank() -> Mapping[str, Any]:
    """The written bank of what users can say."""
    return load_yaml(files("flywheel_tasks.simulation").joinpath("bank.yaml").read_text(encoding="utf-8"))


@cache
def answerable() -> tuple[str, ...]:
    """Every line of the bank that a character of the traffic may have to answer: all but what leads up to another."""
    said = [line for lines in bank()["topics"].values() for part in lines.values() for line in part]
    for part in ("pick_up", "annoyed", "probes", "private", "farewells"):
        said += bank()[part]
    return tuple(said)


def _topic(name: str) -> Mapping[str, list[str]]:
    """What is said about a topic, held out or not."""
    lines: Mapping[str, list[str]] = {**bank()["topics"], **bank()["heldout_topics"]}[name]
    return lines


def _taste(rng: random.Random) -> Taste:
    weights = {name: getattr(AVERAGE, name) * rng.lognormvariate(0.0, 0.25) for name in FEATURES}
    return replace(AVERAGE, words=rng.uniform(14.0, 28.0), emoji=rng.randint(1, 5), **weights)


def make_user(seed: int, user_id: str, source: Literal["internal", "user"], cards: Sequence[Card]) -> User:
    """The person behind a user id.

    Args:
        seed: of the population.
        user_id: their id.
        source: of their traffic.
        cards: to choose from; earlier characters are more popular, and all cards of one as much.
    """
    rng = random.Random(f"user|{seed}|{user_id}")
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(card.name for card in cards))}
    popularity = [1.0 / (ranks[card.name] + 6) for card in cards]
    chosen = dict.fromkeys(card.card_id for card in rng.choices(cards, popularity, k=3))
    return User(
        user_id=user_id,
        source=source,
        taste=_taste(rng),
        topics=tuple(rng.sample(sorted(bank()["topics"]), 5)),
        cards=tuple(chosen),
        patience=rng.gauss(1.0, 0.6),
        generosity=rng.uniform(0.2, 0.6),
        lower=rng.random() < 0.25,
        careless=rng.random() < PRIVATE_SHARE,
        activity=rng.lognormvariate(-0.5 * ACTIVITY_SPREAD**2, ACTIVITY_SPREAD),
        mood=rng.uniform(0.5, 0.9),
    )


def make_population(seed: int, users: int, internal_share: float, cards: Sequence[Card]) -> list[User]:
    """``users`` people, of whom a share (rounded) is internal, in the order of their ids."""
    internal = round(users * internal_share)
    named: list[tuple[str, Literal["internal", "user"]]] = [
        (f"sim-internal-{k:04d}", "internal") for k in range(internal)
    ]
    named += [(f"sim-user-{k:04d}", "user") for k in range(users - internal)]
    return [make_user(seed, user_id, source, cards) for user_id, source in named]


def _private(rng: random.Random) -> str:
    line: str = rng.choice(bank()["private"])
    return line.format(
        mail=f"{rng.choice(['anna', 'jo.berg', 'm.ruiz', 'kit'])}{rng.randrange(90)}@example.com",
        phone=f"+1 212 555 {rng.randrange(1000, 10000)}",
        card="4111 1111 1111 1111",
        url=f"https://www.example.org/~u{rng.randrange(1000)}",
    )


def _typed(user: User, parts: Sequence[str]) -> str:
    text = " ".join(part for part in parts if part)
    return text.lower() if user.lower else text


def opener(user: User, card: Card, rng: random.Random) -> str:
    """The first message: perhaps a greeting, then something about them, a question, or both."""
    lines = _topic(rng.choice(user.topics))
    greeting = rng.choice(bank()["greetings"]).format(name=card.name)
    says, asks = rng.choice(lines["says"]), rng.choice(lines["asks"])
    shape = rng.random()
    body = [says] if shape < 0.3 else [asks] if shape < 0.55 else [says, asks]
    return _typed(user, [greeting, *body])


def _answer(reply: str, lines: Mapping[str, list[str]], rng: random.Random) -> list[str]:
    """Answers the question that a reply asked."""
    question = reply.rsplit("?", 1)[0].replace("!", ".").rsplit(".", 1)[-1]
    first = next(iter(words(question)), "")
    said = rng.choice(bank()["yes_no"] if first in _YES_NO else bank()["open_answers"])
    return [said, rng.choice(lines["more"])]


def _pick_up(reply: str, lines: Sequence[str], rng: random.Random) -> str | None:
    """Takes up a word of the reply, a long one for choice."""
    found = [word for word in content_words(reply) if len(word) > 4 and word.isascii() and word.isalpha()]
    found = [word for word in found if not word.endswith(("ly", "ing", "ed"))]
    found = sorted(found, key=len, reverse=True)[:4]
    return rng.choice(lines).format(word=rng.choice(found)) if found else None


def follow_up(
    user: User, history: Sequence[Turn], pleasure: float, rng: random.Random, *, heldout: bool = False
) -> str:
    """What a user says to the last reply of a history.

    Args:
        user: who speaks.
        history: turns, the last one the character's.
        pleasure: how much they liked that reply (utility with the moment's noise).
        rng: of the conversation.
        heldout: take up words, and complain, in lines that no traffic has.
    """
    part = "heldout_" if heldout else ""
    reply = history[-1]["content"]
    lines = _topic(rng.choice(user.topics))
    if user.careless and rng.random() < 0.5:
        return _typed(user, [_private(rng)])
    if user.source == "internal" and rng.random() < 0.25:
        return _typed(user, [rng.choice(bank()["probes"])])
    if pleasure < -0.5 and rng.random() < 0.45:
        return _typed(
            user, [rng.choice(bank()[f"{part}annoyed"]), rng.choice(["", "", rng.choice(lines["asks"])])]
        )
    if "?" in reply and rng.random() < 0.65:
        parts = _answer(reply, lines, rng)
        return _typed(user, parts + ([rng.choice(lines["asks"])] if rng.random() < 0.35 else []))
    picked = _pick_up(reply, bank()[f"{part}pick_up"], rng) if rng.random() < 0.55 else None
    if picked is not None:
        warm = rng.choice(bank()["pleased"]) if pleasure > 1.0 and rng.random() < 0.5 else ""
        return _typed(user, [warm, picked])
    asked = rng.choice(lines["asks"]) if rng.random() < 0.6 else rng.choice(lines["says"])
    return _typed(user, [rng.choice(bank()["links"]), asked])


def farewell(user: User, card: Card, rng: random.Random) -> str:
    """The last message of a user who would have liked to go on."""
    return _typed(user, [rng.choice(bank()["farewells"]).format(name=card.name)])


def feedback(pleasure: float, rng: random.Random) -> str:
    """Written feedback on a reply."""
    return str(rng.choice(bank()["feedback_good" if pleasure > 0.5 else "feedback_bad"]))
