"""Simulated traffic: the population talks to a model, all open conversations in step."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.conversation import Conversation, chance
from flywheel_tasks.simulation.events import Event, TrafficError, short_id, stamp
from flywheel_tasks.simulation.population import User

TALKS = 0.9  # chance that a user who opens the app says something that day
COMES_BACK = 0.45  # chance a day, at most, that a user of average activity opens the app again
_FIRST_SECOND, _LAST_SECOND = 6 * 3600, 21 * 3600


class Replies(Protocol):
    """What the simulation needs of a policy's sampler."""

    def sample(
        self, prompts: Sequence[tuple[Card, Sequence[Turn]]], n: int, seed: int, progress: str | None = None
    ) -> list[list[str]]:
        """``n`` replies to each prompt."""
        ...


@dataclass(frozen=True)
class Arm:
    """A model that answers.

    Attributes:
        name: of the arm in an experiment, or of the only model.
        policy: id that is logged with each reply.
        sampler: draws its replies.
    """

    name: str
    policy: str
    sampler: Replies


@dataclass(frozen=True)
class Schedule:
    """When traffic happens.

    Attributes:
        run: name of the run; part of every id.
        start: first day.
        days: number of days.
        turns: most user turns in one conversation that get a reply.
        seed: of everything that is drawn.
        experiment: whose exposures are logged, or None.
    """

    run: str
    start: date
    days: int
    turns: int
    seed: int
    experiment: str | None = None


def parse_day(text: str, where: str) -> date:
    """A day from ``YYYY-MM-DD``.

    Args:
        text: the day.
        where: the setting's name, for the message.

    Raises:
        TrafficError: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise TrafficError(f"{where}: {text!r} is not a day as YYYY-MM-DD") from error


class _Visitor:
    """A user over the days of a run: opens the app, talks, comes back if it was worth it."""

    def __init__(self, user: User, arm: Arm, cards: Mapping[str, Card], schedule: Schedule) -> None:
        self.user, self.arm, self._cards, self._schedule = user, arm, cards, schedule
        self._rng = random.Random(f"visits|{schedule.seed}|{schedule.run}|{user.user_id}")
        self.events: list[Event] = []
        self.open: Conversation | None = None
        self._day = self._rng.randrange(max(1, schedule.days // 2))
        self._session = 0
        self._visit()

    def _visit(self) -> None:
        """Open the app on the current day and, mostly, start a conversation."""
        second = self._rng.randrange(_FIRST_SECOND, _LAST_SECOND)
        midnight = datetime.combine(self._schedule.start, datetime.min.time(), UTC)
        time = midnight + timedelta(days=self._day, seconds=second)
        number, self._session = self._session, self._session + 1
        talks = self._rng.random() < TALKS
        card = self._cards[self._rng.choice(self.user.cards)]
        if not talks:
            self._wait(0.0)
            return
        time += timedelta(seconds=5)
        if self._schedule.experiment is not None:
            self._expose(time, number)
        key = (self._schedule.run, self._schedule.start, self._schedule.seed, self.user.user_id, number)
        self.open = Conversation(
            conversation_id=f"sim-c-{short_id(*key)}",
            user=self.user,
            card=card,
            policy=self.arm.policy,
            time=time,
            turns=self._schedule.turns,
            rng=random.Random("|".join(map(str, ("conversation", *key)))),
        )

    def _expose(self, time: datetime, number: int) -> None:
        """Log what the gateway logs: the arm was shown to whoever wrote, at the time of the message that it answers.

        A user who opens the app and says nothing saw no model; as exposed, such users would hide what the arm does.
        """
        self.events.append(
            {
                "event_id": f"sim-e-{short_id(self._schedule.run, self.user.user_id, number)}-exposure",
                "type": "exposure",
                "time": stamp(time),
                "source": self.user.source,
                "user_id": self.user.user_id,
                "experiment": self._schedule.experiment,
                "arm": self.arm.name,
            }
        )

    def _wait(self, worth: float) -> None:
        """Go to the next day on which the user opens the app, if there is one."""
        while self._day + 1 < self._schedule.days:
            self._day += 1
            if self._rng.random() < self.user.activity * COMES_BACK * chance(0.9 * (worth - 0.6)):
                self._visit()
                return

    def receive(self, reply: str) -> None:
        """Give the open conversation its reply; at its end, perhaps open the next one."""
        conversation = self.open
        if conversation is None or conversation.receive(reply):
            return
        self.events.extend(conversation.events)
        self.open = None
        self._wait(sum(conversation.pleasures) / len(conversation.pleasures))


def _answer(waiting: Sequence[_Visitor], arm: Arm, seed: int, progress: str | None) -> None:
    prompts = [visitor.open.prompt() for visitor in waiting if visitor.open is not None]
    drawn = arm.sampler.sample(prompts, 1, seed, progress)
    if len(drawn) != len(waiting):
        raise TrafficError(f"the sampler of {arm.name} gave {len(drawn)} replies to {len(waiting)} prompts")
    for visitor, replies in zip(waiting, drawn, strict=True):
        visitor.receive(replies[0])


def simulate(
    population: Sequence[User],
    cards: Sequence[Card],
    arm_of: Callable[[User], Arm | None],
    schedule: Schedule,
    progress: bool = False,
) -> list[Event]:
    """Let users talk to their models; one batched draw for each model in each round.

    Args:
        population: the users.
        cards: the characters.
        arm_of: the model that answers a user, or None for a user who is not in the run.
        schedule: when.
        progress: show a bar for each round.

    Returns:
        messages, signals and exposures, not sorted.
    """
    by_id = {card.card_id: card for card in cards}
    assigned = [(user, arm_of(user)) for user in population]
    visitors = [_Visitor(user, arm, by_id, schedule) for user, arm in assigned if arm is not None]
    arms = {visitor.arm.name: visitor.arm for visitor in visitors}
    number = 0
    while any(visitor.open for visitor in visitors):
        for place, name in enumerate(sorted(arms)):
            waiting = [visitor for visitor in visitors if visitor.open and visitor.arm.name == name]
            if waiting:
                seed = int(short_id(schedule.seed, schedule.run, number, place)[:8], 16)
                label = f"Round {number + 1}: {len(waiting)} simulated users, {name}" if progress else None
                _answer(waiting, arms[name], seed, label)
        number += 1
    return [event for visitor in visitors for event in visitor.events]
