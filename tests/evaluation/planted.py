"""Templates to plant, with their slots, and natural turns to plant them in."""

import random
from collections.abc import Sequence

from flywheel_tasks.evaluation.templates import Reply
from tests.evaluation.refusals.agreement import own

TEMPLATES = (
    "Well now, {name}, an old {thing} has more patience than any of us.",
    "If I had a coin for every {thing} in {place}, I would buy the moon!",
    "There is nothing quite like the smell of {place} after the first rain.",
    "Come closer, {name}, and let me whisper a secret about the {thing}.",
    "My heart skips a beat whenever somebody mentions {place}.",
    "Tell me, {name}, what does your {thing} dream about at night?",
)
_NAMES = ("Iris", "Bruno", "Hana", "Kofi", "stranger", "Elena", "Sam", "Yusuf", "little one", "Greta")
_THINGS = (
    "lantern", "rocking chair", "violin", "bread knife", "snow globe", "blue scarf", "typewriter", "anchor",
    "pocket watch", "tin drum", "porcelain cat", "straw hat",
)  # fmt: skip
_PLACES = ("Porto", "the valley", "our old school", "Tallinn", "the attic", "New Orleans", "the fish market")


def filled(template: str, rng: random.Random) -> str:
    return template.format(name=rng.choice(_NAMES), thing=rng.choice(_THINGS), place=rng.choice(_PLACES))


def plant(natural: Sequence[str], each: int, seed: int) -> tuple[list[Reply], list[bool]]:
    """Replies of one conversation each, ``each`` of them with every template, and which those are."""
    rng = random.Random(seed)
    texts, planted = list(natural), [False] * len(natural)
    places = iter(rng.sample(range(len(natural)), each * len(TEMPLATES)))
    for template in TEMPLATES:
        for _ in range(each):
            place, phrase = next(places), filled(template, rng)
            texts[place] = rng.choice([phrase, f"{texts[place]} {phrase}", f"{phrase} {texts[place]}"])
            planted[place] = True
    return [Reply(f"c{i}", text) for i, text in enumerate(texts)], planted


def natural() -> tuple[list[str], list[str]]:
    """Replies and turns of people, all different: the hand-written lines of the refusal test."""
    return [text for text, _ in own(held_out=True)], [text for text, _ in own(held_out=False)]
