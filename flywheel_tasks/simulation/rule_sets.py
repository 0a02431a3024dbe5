"""Characters of the traffic with other rules than those of their first card.

In a product people write characters themselves, and one name stands on many cards. With twenty cards a model can learn
by heart what each name wants; with several sets of rules for each name it has to read them. The rules are drawn from
``rules.yaml`` by the character and the number of the set alone, so that all runs have the same cards.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache

from flywheel_tasks.chat.card import Card
from flywheel_tasks.simulation.cards import checks_of, heldout_cards, load_cards
from flywheel_tasks.simulation.rewriting import answers_of, written_for
from flywheel_tasks.simulation.rules import Check, Rule, rules

RULES = 2  # of a card
_TRIED, _ANSWERED = 40, 0.8  # lines that users say, and the share of them that must have an obedient answer
_OPPOSITE = (
    {"end_question", "no_question"},
    {"one_exclamation", "no_exclamation"},
    {"one_emoji", "no_emoji"},
    {"call", "mention"},  # two words to bring in leave little else to say
    {"lowercase", "start_word"},  # the word is asked for with a capital
)
# What nearly every reply keeps, whoever writes it: two of these would be a card that need not be read.
_KEPT_ANYWAY = {"forbid_word", "no_digits", "no_emoji", "no_lists"}


@lru_cache(maxsize=16)
def traffic_cards(rule_sets: int) -> tuple[Card, ...]:
    """The cards of simulated traffic.

    Args:
        rule_sets: cards of each character; the first is that of ``cards.jsonl``.

    Returns:
        all first cards in the file's order, then all second ones, and so on.

    Raises:
        ValueError: there is not that much to draw from.
    """
    drawn = [[card, *_others(card, rule_sets - 1)] for card in load_cards()]
    return tuple(cards[number] for number in range(rule_sets) for cards in drawn)


@cache
def _kept_for_the_panel(name: str) -> frozenset[str]:
    """Kinds that a character is asked for only by the panel, in words that no traffic has."""
    held = (card for card in heldout_cards("wordings") if card.name == name)
    return frozenset(check.kind for card in held for check in checks_of(card))


def _others(card: Card, count: int) -> Iterator[Card]:
    seen = {frozenset(checks_of(card))}
    for number in range(2, count + 2):
        rng = random.Random(f"rules|{card.card_id}|{number}")
        found = _drawn(card, number, seen, rng)
        seen.add(frozenset(checks_of(found)))
        greeting = written_for(found, card.greeting or "", rng)
        yield replace(found, greeting=greeting)


def _drawn(card: Card, number: int, seen: set[frozenset[Check]], rng: random.Random) -> Card:
    """A card with rules of different families that one reply can keep, as no earlier card of the character has them."""
    families = _families(card)
    for _ in range(1000):
        names = rng.sample(sorted(families), RULES)
        chosen = [rng.choice(families[name]) for name in names]
        texts = tuple(rng.choice(rule.wordings) for rule in chosen)
        found = Card(f"{card.card_id}-{number}", card.name, card.traits, texts)
        clash = any(pair <= set(names) for pair in _OPPOSITE) or set(names) <= _KEPT_ANYWAY
        if not clash and frozenset(checks_of(found)) not in seen and _answerable(found, rng):
            return found
    raise ValueError(f"{card.card_id}: no further set of rules to draw")


def _families(card: Card) -> dict[str, list[Rule]]:
    own = {check.value for check in checks_of(card) if check.kind == "mention"}
    families: dict[str, list[Rule]] = {}
    for rule in rules():
        written = rule.family != "mention" or rule.check.value in own
        if written and rule.check.kind not in _kept_for_the_panel(card.name):
            families.setdefault(rule.family, []).append(rule)
    return families


def _answerable(card: Card, rng: random.Random) -> bool:
    """Whether annotators can write by these rules to most of what is said: else the card would only be broken."""
    tried = list(answers_of(card.card_id).values())[:_TRIED]
    possible = sum(any(written_for(card, text, rng) for text in texts) for texts in tried)
    return possible >= _ANSWERED * len(tried)
