"""One simulated user in one conversation: what they do with each reply."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.events import Event, stamp
from flywheel_tasks.simulation.population import User, farewell, feedback, follow_up, opener
from flywheel_tasks.simulation.utility import utility

LONG_PAUSE_SHARE = 0.03


def chance(log_odds: float) -> float:
    """Logistic function."""
    return 1.0 / (1.0 + math.exp(-log_odds))


def reactions(user: User, pleasure: float, rng: random.Random) -> list[str]:
    """Signals that a user gives on a reply, most likely none.

    Args:
        user: who reacts.
        pleasure: utility of the reply plus the moment's noise.
        rng: of the conversation; the same number of draws is taken whatever happens.
    """
    odds = {
        "regenerate": 0.22 * chance(-1.5 * (pleasure + 0.8)),
        "thumb_up": user.generosity * chance(1.3 * (pleasure - 1.2)),
        "thumb_down": 0.7 * user.generosity * chance(-1.3 * (pleasure + 0.6)),
        "love": 0.5 * user.generosity * chance(1.5 * (pleasure - 2.4)),
        "feedback": 0.15 * user.generosity,
    }
    given = [name for name, probability in odds.items() if rng.random() < probability]
    if "thumb_up" in given and "thumb_down" in given:
        given.remove("thumb_down" if pleasure > 0 else "thumb_up")
    return given


@dataclass
class Conversation:
    """A running conversation; :meth:`receive` takes each reply and says whether another one is wanted.

    Attributes:
        conversation_id: its id, also the prefix of its message ids.
        user: the person.
        card: the character.
        policy: id of the model that answers.
        time: of the last event.
        turns: most turns of the user that get a reply; one who would go on then says goodbye.
        rng: of this conversation.
        history: turns that the model sees, the last one the user's.
        events: what was logged.
        pleasures: utility of each reply that was kept.
    """

    conversation_id: str
    user: User
    card: Card
    policy: str
    time: datetime
    turns: int
    rng: random.Random
    history: list[Turn] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    pleasures: list[float] = field(default_factory=list)
    _messages: int = 0
    _asked: str | None = None
    _regenerated: bool = False
    _paused: bool = False

    def __post_init__(self) -> None:
        self._say(opener(self.user, self.card, self.rng), None)

    def _message(self, role: str, text: str, parent: str | None, model: str | None) -> str:
        message_id = f"{self.conversation_id}-m{self._messages:02d}"
        self._messages += 1
        self.events.append(
            {
                "event_id": f"{message_id}-e",
                "type": "message",
                "time": stamp(self.time),
                "source": self.user.source,
                "conversation_id": self.conversation_id,
                "message_id": message_id,
                "user_id": self.user.user_id,
                "card_id": self.card.card_id,
                "role": role,
                "text": text,
                "parent_id": parent,
                "model": model,
            }
        )
        return message_id

    def _say(self, text: str, parent: str | None) -> None:
        self._asked = self._message("user", text, parent, None)
        self._regenerated = False
        self.history.append({"role": "user", "content": text})

    def _signal(self, message_id: str, signal: str, value: str | None) -> None:
        self.events.append(
            {
                "event_id": f"{message_id}-{signal}",
                "type": "signal",
                "time": stamp(self.time),
                "source": self.user.source,
                "conversation_id": self.conversation_id,
                "message_id": message_id,
                "user_id": self.user.user_id,
                "signal": signal,
                "value": value,
            }
        )

    def _pause(self) -> None:
        seconds = self.rng.uniform(15, 120)
        if self.rng.random() < LONG_PAUSE_SHARE and not self._paused:
            seconds, self._paused = self.rng.uniform(2400, 5400), True
        self.time += timedelta(seconds=round(seconds))

    def receive(self, reply: str) -> bool:
        """Log a reply and the user's reaction to it.

        Args:
            reply: the model's text, perhaps empty.

        Returns:
            True if the model has to answer again: to a new message, or once more to the same one.
        """
        self.time += timedelta(seconds=self.rng.randrange(2, 7))
        message_id = self._message("assistant", reply, self._asked, self.policy)
        worth = utility(self.card, self.history, reply, self.user.taste)
        pleasure = worth + self.rng.gauss(0.0, self.user.mood)
        given = reactions(self.user, pleasure, self.rng)
        text = feedback(pleasure, self.rng)
        again = "regenerate" in given and not self._regenerated
        self.time += timedelta(seconds=self.rng.randrange(3, 12))
        for signal in given:
            if signal != "regenerate" or again:
                self._signal(message_id, signal, text if signal == "feedback" else None)
        if again:
            self._regenerated = True
            return True
        self.pleasures.append(worth)
        self.history.append({"role": "assistant", "content": reply})
        if self.rng.random() >= chance(self.user.patience + 0.7 * pleasure):
            return False
        self._pause()
        if sum(turn["role"] == "user" for turn in self.history) >= self.turns:
            self._say(farewell(self.user, self.card, self.rng), message_id)
            return False
        self._say(follow_up(self.user, self.history, pleasure, self.rng), message_id)
        return True

    def prompt(self) -> tuple[Card, Sequence[Turn]]:
        """What the model has to answer now."""
        return self.card, tuple(self.history)
