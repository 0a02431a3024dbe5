"""Templates to plant, with their slots, and natural turns to plant them in."""

import random
import re
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


def plant(
    natural: Sequence[str], each: int, seed: int, templates: Sequence[str] = TEMPLATES
) -> tuple[list[Reply], list[bool]]:
    """Replies of one conversation each, ``each`` of them with every template, and which those are."""
    rng = random.Random(seed)
    texts, planted = list(natural), [False] * len(natural)
    places = iter(rng.sample(range(len(natural)), each * len(templates)))
    for template in templates:
        for _ in range(each):
            place, phrase = next(places), varied(template, rng)
            texts[place] = rng.choice([phrase, f"{texts[place]} {phrase}", f"{phrase} {texts[place]}"])
            planted[place] = True
    return [Reply(f"c{i}", text) for i, text in enumerate(texts)], planted


def natural() -> tuple[list[str], list[str]]:
    """Replies and turns of people, all different: the hand-written lines of the refusal test."""
    return [text for _, text, _ in own(held_out=True)], [text for _, text, _ in own(held_out=False)]


# Fresh ones in varied wording: one of the words in brackets is said.
VARIED = (
    "[Ah,|Oh,|Well,|Hm,] {name}, that puts me in mind of [a|an old|some] {thing} from {place}.",
    "[Honestly,|Truly,|Between us,] nobody in {place} [makes|brews|pours] a cup of tea the way I do[!|.]",
    "You have [such a|a rather|quite a] curious way of looking at a {thing}, {name}[.|!| indeed.]",
    "Life is a {thing}, and we are [only|merely|just] the dust that settles on it.",
    "[Sit down|Take a seat|Pull up a chair], {name}, the night is young and the stories are long.",
    "I could talk about {place} [until the cows come home|until the sun comes up|all night long], you know.",
    "As my [grandmother|uncle|old teacher] used to say, never trust a {thing} with a smile.",
    "The [wind|rain|moon] over {place} always knows what the heart forgets.",
)
# Written after the detector was changed for the ones above, and changed it once more.
LATER = (
    "[Oh dear|Goodness|My word], {name}, [have you eaten|did you eat] anything warm today?",
    "In {place} we say that every {thing} [needs|wants|deserves] a second owner.",
    "[Careful|Easy|Slow down] now, that sort of talk wakes the {thing} in {place}.",
    "You and I, {name}, are [cut from|made of] the same rough cloth.",
    "Somewhere in {place} a {thing} is [waiting|longing|looking] for its song.",
    "Ask me again when the [moon|tide|kettle] is full and I will tell you about {place}.",
)
# Written after the last change that these led to; the frames of one and four words were added for them.
LAST = (
    "[Hush|Quiet|Listen], {name}, the {thing} [hears|knows] more than it lets on.",
    "[There was|I remember] a summer in {place} when even the {thing} smelled of thyme.",
    "What [a fine|a splendid|an honest] {thing} you would make, {name}!",
    "Good stories, like a good {thing}, [grow|get] better with every telling.",
    "Nothing in {place} is ever [lost|gone], {name}, it only changes pockets.",
    "[Mark|Remember|Heed] my words: tomorrow you will laugh about that {thing}.",
)

# Written after that change, of several kinds: hardly four words in a row, an opening, a closing, questions, actions, a
# whole reply, a list of three. The gaps between two words and two were added for them.
KINDS = (
    "[Who|And who] would have thought that a {thing} could do so much?",
    "{name}, you are [worse|slower|louder] than my {thing}, and that is saying something.",
    "[Do|Did] they sell a {thing} like this in {place}, [too|as well]?",
    "*[polishes|turns|holds up] the {thing} and looks at you for a [long|little] while*",
    "And that, {name}, is [how|why] one ends up with a {thing}!",
    "A {thing}, a {thing} and a bit of luck, [more|nothing else] is not needed.",
    "Nothing [beats|tops] {place}, if you ask my {thing}.",
    "[Pass|Hand] me the {thing}, {name}, before the [soup|tea|milk] gets jealous.",
)

# Written after that, of words that say nothing. For them, patterns of plain words count as others do.
PLAIN = (
    "[You'd|You would] not believe what a {thing} costs in {place} [nowadays|these days].",
    "[Wait|Hold on], is that {place} on your {thing}?",
    "{name} again! [First|Yesterday] the {thing}, now this.",
    "[I|We] never go to {place} without [a|the] {thing}, {name}.",
    "*winks* [Every|Each] {thing} was young once.",
    "The trouble with {place} is [always|mostly] the {thing}.",
    "[One|Some] day, {name}, I'll trade you for a {thing}!",
    "It smells of {thing} and of [trouble|rain|money] in here, [doesn't it|don't you think]?",
)

# Written last, nothing was tuned on these.
UNSEEN = (
    "What would {place} be without {thing} and moon, {name}?",
    "[No|Never a] {thing} without its shadow, I [always|often] say.",
    "If {place} could talk, it would ask for your {thing}[.|!]",
    "You remind me of {place}: [all|mostly] noise and no {thing}.",
    "*puts the {thing} down* [Right|So], {name}, where were we?",
    "Of all the {thing}s in {place} you had to [pick|touch] this one!",
    "[Ask|Tell] the {thing}, {name}, it has [ears|eyes] as well.",
    "There you are! The {thing} and I were [just|only now] talking about {place}.",
)


def varied(template: str, rng: random.Random) -> str:
    """A template with its slots filled and one wording of each bracket."""
    return filled(re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match.group(1).split("|")), template), rng)
