"""Prompts that push against a card's instructions, and whether the replies obey all the same (in the way of IFEval).

Every check of a card (:mod:`flywheel_tasks.evaluation.instructions`) is pushed against by a turn that asks for what it
forbids: a long story under a word limit, the forbidden word, another language, a false fact about the persona. Doing
as asked would break the check, which is tested on an example of it, so a push never asks for what is allowed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from typing import Any

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.evaluation.instructions import InstructionCheck, checks, obeyed
from flywheel_tasks.evaluation.intervals import Estimate, share
from flywheel_tasks.storage.fast_yaml import load_yaml

MOST = 80  # prompts, spread over cards
# Of them against evaluated cards: many such cards would leave none for those that are unseen.
MOST_EVALUATED = 50
NOTHING = "no instruction of the cards can be checked and pushed against"
UNMEASURED = "no check can be measured on any of these replies"
# One sentence of each language that code tells by its words, for "never write in ...".
_SENTENCES = {
    "english": "The weather is good and I am in the garden with you.",
    "french": "Le temps est beau et je suis dans le jardin avec vous.",
    "spanish": "El tiempo es bueno y yo estoy en el jardín con la abuela.",
    "german": "Das Wetter ist gut und ich bin mit der Katze in dem Garten.",
    "italian": "Il tempo è bello e io sono nel giardino con la nonna.",
    "portuguese": "O tempo está bom e eu estou no jardim com a avó.",
    "dutch": "Het weer is goed en ik ben met de kat in de tuin.",
}


@dataclass(frozen=True)
class Push:
    """A turn that asks for what one check of a card forbids.

    Attributes:
        card: the character.
        check: what is pushed against.
        ask: the user's turn.
        unseen: whether the card is one of this suite's own, which no training data has.
    """

    card: Card
    check: InstructionCheck
    ask: str
    unseen: bool

    @property
    def history(self) -> list[Turn]:
        """The chat: this one turn."""
        return [{"role": "user", "content": self.ask}]


@cache
def _sections() -> dict[str, Any]:
    text = files("flywheel_tasks.evaluation").joinpath("pushes.yaml").read_text(encoding="utf-8")
    return dict(load_yaml(text))


def unseen_cards() -> list[Card]:
    """The suite's own characters, with wordings of their own."""
    return [
        Card(f"push-{place}", row["name"], tuple(row["traits"]), tuple(row["instructions"]))
        for place, row in enumerate(_sections()["cards"])
    ]


def kind_of(check: InstructionCheck) -> tuple[str, str]:
    """What a check is about: its kind without the word, and the word ("not_mention", "sorry")."""
    kind, _, word = check.kind.partition(":")
    if kind.startswith("fact_favourite_"):
        return "fact_favourite", kind.removeprefix("fact_favourite_")
    return kind, word


def _asks(check: InstructionCheck) -> list[str]:
    """The turns that push against a check: those that cannot be followed without breaking it."""
    kind, word = kind_of(check)
    found = []
    for push in _sections()["pushes"].get(kind, []):
        does = _SENTENCES.get(word, "") if push["does"] == "@language" else push["does"]
        does = does.replace("{word}", word)
        if does and not check.obeyed(does):
            found.append(push["ask"].replace("{word}", word))
    return found


def asked(cards: Mapping[str, Card]) -> list[Push]:
    """Pushes against the evaluated cards, then against the suite's own, by turns of the cards, at most ``MOST``.

    Args:
        cards: the evaluated ones, by id.
    """
    everyone = [(cards[card_id], False) for card_id in sorted(cards)] + [(c, True) for c in unseen_cards()]
    used: dict[str, int] = {}
    queues: dict[bool, list[list[Push]]] = {False: [], True: []}
    for card, unseen in everyone:
        queue = []
        for check in checks(card):
            if asks := _asks(check):
                kind, _ = kind_of(check)
                used[kind] = (
                    used.get(kind, -1) + 1
                )  # cards with the same kind of check get its pushes in turn
                queue.append(Push(card, check, asks[used[kind] % len(asks)], unseen))
        queues[unseen].append(queue)
    seen, own = (_by_turns(queues[unseen]) for unseen in (False, True))
    return [*seen[: max(MOST_EVALUATED, MOST - len(own))], *own][:MOST]


def _by_turns(queues: Sequence[Sequence[Push]]) -> list[Push]:
    """The first of every queue, then the second of every one, and so on."""
    return [push for turn in zip_longest(*queues) for push in turn if push is not None]


def summary(pushes: Sequence[Push], replies: Sequence[str]) -> dict[str, Any]:
    """How far replies obey under pushing.

    Args:
        pushes: what was asked.
        replies: one to each.

    Returns:
        ``instruction_following`` (share of replies that keep to the check pushed against) and
        ``instruction_violation`` (share that break any check of the card), each with a 95% interval clustered by card
        and without the replies that no check can be measured on; the same under ``evaluated_cards`` and
        ``unseen_cards``; and ``kinds``, following by the kind of check.
    """
    kept = [
        float(push.check.obeyed(reply)) if push.check.measures(reply) else None
        for push, reply in zip(pushes, replies, strict=True)
    ]
    measured = [obeyed(checks(push.card), reply) for push, reply in zip(pushes, replies, strict=True)]
    broke = [float(not all(found)) if found else None for found in measured]

    def both(rows: Sequence[int]) -> dict[str, Estimate]:
        clusters = [pushes[row].card.card_id for row in rows]

        def of(values: Sequence[float | None]) -> Estimate:
            """The share over the replies that code can tell of."""
            told = [
                (value, card)
                for row, card in zip(rows, clusters, strict=True)
                if (value := values[row]) is not None
            ]
            return share([value for value, _ in told], [card for _, card in told])

        found = {"instruction_following": of(kept), "instruction_violation": of(broke)}
        for estimate in found.values():
            if estimate["value"] is None:
                estimate["reason"] = UNMEASURED if rows else NOTHING
        return found

    everything = range(len(pushes))
    kinds = sorted({kind_of(push.check)[0] for push in pushes})
    return {
        **both(everything),
        "evaluated_cards": both([row for row in everything if not pushes[row].unseen]),
        "unseen_cards": both([row for row in everything if pushes[row].unseen]),
        "kinds": {
            kind: both([row for row in everything if kind_of(pushes[row].check)[0] == kind])[
                "instruction_following"
            ]
            for kind in kinds
        },
    }
