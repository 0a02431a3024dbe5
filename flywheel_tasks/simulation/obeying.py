"""How a reply that was written for a character is made to keep the rules of another of its cards.

A person who writes for a card leaves out a sentence, calls the user what the card says, or drops the capitals. A reply
that cannot be made to obey by such changes is not used.
"""

import random
import re
from collections.abc import Sequence

import emoji

from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.rules import Check, names_for_users
from flywheel_tasks.simulation.wording import emoji_count, words

_END = re.compile(r"([.!?…]+[\"'”’)*]*)\s*$")
_BREAK = re.compile(r"(?<=[.!?…])\s+")
_FEWEST_WORDS, _LEAST_SHARE = 4, 0.5  # of what is left of a reply: else it says little of what was written
_EMPTY = ("very", "really", "just")  # words that a sentence can do without
_INTERJECTIONS = frozenset(
    {"ah", "aye", "hello", "hey", "hm", "hmm", "mm", "no", "oh", "psst", "yeah", "yes"}
)
_IN_FRONT = 0.3  # share of the names that open a reply


def obeying(
    text: str,
    checks: Sequence[Check],
    written_for: Sequence[Check],
    *,
    emojis: str,
    common: frozenset[str],
    rng: random.Random,
) -> str | None:
    """A reply in the way that a card demands.

    Args:
        text: the reply, which keeps the rules it was written for.
        checks: those that it has to keep.
        written_for: those that it was written for; of these, small letters, a first word and a name for the user are
            taken back.
        emojis: what the character may use, at least one.
        common: words that are no names, in lower case.
        rng: for the choices.

    Returns:
        the longest run of its sentences that can be made to obey; None if there is none with half of its words.
    """
    parts = _BREAK.split(_plain(text, checks, written_for))
    in_order = sorted(checks, key=_place)
    fewest = max(_FEWEST_WORDS, _LEAST_SHARE * len(words(text)))
    runs = [(end - start, start) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1)]
    for length, start in sorted(runs, key=lambda run: (-run[0], run[1])):
        found = " ".join(parts[start : start + length])
        for check in in_order:
            found = _edited(found, check, checks, emojis, common, rng)
        if len(words(found)) >= fewest and all(obeys(check, found) for check in checks):
            return found
    return None


def _plain(text: str, checks: Sequence[Check], written_for: Sequence[Check]) -> str:
    kinds = {check.kind for check in checks}
    for check in written_for:
        if check.kind == "start_word" and check not in checks:
            # Only what stands apart: "Listeners know that" would lose its subject.
            text = re.sub(rf"^{check.value}[,.!?:;]\s+", "", text, flags=re.IGNORECASE)
            text = text[:1].upper() + text[1:]
        if _names_the_user(check) and check not in checks:
            text = _without_name(text, str(check.value), checks)
        if check.kind == "lowercase" and "lowercase" not in kinds:
            text = re.sub(r"\bi\b", "I", text)
            text = re.sub(r"(^|[.!?…]\s+)([a-z])", lambda found: found[1] + found[2].upper(), text)
    return text


def _names_the_user(check: Check) -> bool:
    return check.kind == "mention" and check.value in names_for_users()


def _without_name(text: str, name: str, checks: Sequence[Check]) -> str:
    """The user not called as on the first card, but as on this one, if it asks for a name."""
    other = next((str(check.value) for check in checks if _names_the_user(check)), None)
    if other is not None:
        return re.sub(rf"\b{name}\b", other, re.sub(rf"\b{name.capitalize()}\b", other.capitalize(), text))
    text = re.sub(rf",? {name}(?=[,.!?…]|$)", "", text)
    text = re.sub(rf"^{name}, (\w)", lambda found: found[1].upper(), text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text)


def _place(check: Check) -> int:
    """Words first, then marks, then letters: what comes later must not undo what came before."""
    order = ("forbid_word", "mention", "start_word", "no_emoji", "one_emoji")
    return len(order) + (check.kind == "lowercase") if check.kind not in order else order.index(check.kind)


def _edited(
    text: str,
    check: Check,
    checks: Sequence[Check],
    emojis: str,
    common: frozenset[str],
    rng: random.Random,
) -> str:
    if obeys(check, text):
        return text
    match check.kind:
        case "forbid_word" if check.value in _EMPTY:
            return re.sub(rf"(?<!\b[Aa] )(?<!\b[Aa]n )\b{check.value} (?=\w)", "", text)
        case "mention" if _names_the_user(check):
            first_word_taken = any(other.kind == "start_word" for other in checks)
            return _called(text, str(check.value), first_word_taken, common, rng)
        case "start_word":
            return f"{str(check.value).capitalize()}, {_small_first(text, common)}"
        case "no_exclamation":
            return _without_exclamations(text)
        case "one_exclamation":
            return _one_exclamation(text)
        case "no_emoji":
            return emoji.replace_emoji(text, "").replace("  ", " ").strip()
        case "one_emoji" if emoji_count(text) == 0:
            return f"{text} {rng.choice(sorted(emoji.distinct_emoji_list(emojis)))}"
        case "lowercase":
            return text.lower()
    return text


def _called(text: str, name: str, first_word_taken: bool, common: frozenset[str], rng: random.Random) -> str:
    """The user called by a name, at the beginning or at the end of a sentence."""
    if not first_word_taken and rng.random() < _IN_FRONT:
        return f"{name.capitalize()}, {_small_first(text, common)}"
    parts = _BREAK.split(text)
    place = rng.randrange(len(parts))
    parts[place] = _END.sub(rf", {name}\1", parts[place])
    return " ".join(parts)


def _small_first(text: str, common: frozenset[str]) -> str:
    """With a small first letter, unless the first word is a name or "I"."""
    first = next(iter(words(text)), "")
    if first.split("'")[0] != "i" and (first in common or first in _INTERJECTIONS):
        return text[:1].lower() + text[1:]
    return text


def _one_exclamation(text: str) -> str:
    if "!" not in text:
        return re.sub(r"(?<!\.)\.(?=\s|$)", "!", text, count=1)
    first = text.index("!") + 1
    return text[:first] + _without_exclamations(text[first:].lstrip("!"))


def _without_exclamations(text: str) -> str:
    return re.sub(r"(?<=[?…])!+", "", re.sub(r"(?<![?…!])!+", ".", text))
