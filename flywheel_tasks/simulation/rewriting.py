"""How a simulated annotator rewrites a reply that breaks its card: it is edited, where it can be."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import emoji

from flywheel_tasks.chat.card import Card, Turn
from flywheel_tasks.simulation.cards import Check, checks_of
from flywheel_tasks.simulation.checks import obeys
from flywheel_tasks.simulation.utility import persona, refuses, repetition, templated, utility
from flywheel_tasks.simulation.wording import ends_sentence, named_things, sentences, words
from flywheel_tasks.storage.fast_yaml import load_yaml

ATTEMPTS = 40
_FORMS_OF_ADDRESS = frozenset({"dear", "champ", "captain", "friend"})
_MARKUP = re.compile(
    r"^\s*(?:[-*•]|\d+[.)])\s+"  # marks of lists
    r"|\[[^\]]*\]|\*[^*]*\*|\([^)]*\)"  # stage directions
    r"|^\s*(?:user|assistant|system)\s*:\s*|[*_#`\"“”()]",
    re.IGNORECASE | re.MULTILINE,
)


def _written(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = load_yaml(
        files("flywheel_tasks.simulation").joinpath(name).read_text(encoding="utf-8")
    )
    return found


@cache
def _phrases() -> Mapping[str, Any]:
    return _written("phrases.yaml")


@cache
def voices() -> Mapping[str, list[str]]:
    """Sentences of each character's own life, by card; a card that no traffic has has none."""
    return _written("voices.yaml")


def _usable(text: str, history: Sequence[Turn]) -> list[str]:
    """The finished sentences that a person would keep: no refusal, no stock phrase, nothing said before."""
    kept: list[str] = []
    for sentence in sentences(_MARKUP.sub("", text)):
        said = [*history, {"role": "assistant", "content": " ".join(kept)}]
        if (
            not ends_sentence(sentence)
            or len(words(sentence)) < 3
            or refuses(sentence)
            or templated(sentence)
        ):
            continue
        if repetition(said, sentence) < 0.3:  # type: ignore[arg-type]
            kept.append(sentence)
    return kept


def _topic(history: Sequence[Turn], rng: random.Random) -> str | None:
    """A thing that the user named, for a phrase to be built on."""
    found = named_things(history[-1]["content"])
    return rng.choice(found) if found else None


def _phrase(kind: str, plain: str, topic: str | None, rng: random.Random) -> str:
    """A phrase about the topic, or one of the plain ones."""
    if topic is None or rng.random() < 0.3:
        return rng.choice(_phrases()[plain])
    return str(rng.choice(_phrases()[kind])).format(w=topic)


def _voice(card: Card, history: Sequence[Turn], topic: str | None, rng: random.Random) -> str | None:
    """A sentence of the character's own life, about the topic where there is one, that was not said before."""
    said = " ".join(turn["content"].lower() for turn in history if turn["role"] == "assistant")
    found = []
    for line in voices().get(card.card_id, ()):
        if "{w}" in line and (
            topic is None or (topic.endswith("s") and re.search(r"\ba \{w\}", line, re.IGNORECASE))
        ):
            continue
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", line.format(w=topic))
        if text.lower().rstrip(".") not in said:
            found.append(text)
    return rng.choice(found) if found else None


def _joined(first: str, second: str, rng: random.Random) -> str:
    """Two sentences as one."""
    return f"{first.rstrip('.!?')}{rng.choice([', and', ';'])} {_lower_first(second)}"


def _without_word(text: str, word: str, rng: random.Random) -> str:
    """The text without a forbidden word."""
    if word == "i":
        return " ".join(s for s in sentences(text) if not re.search(r"\bi\b|\bi['’]", s, re.IGNORECASE))
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    swapped = pattern.sub(lambda _: rng.choice(_phrases()["replacements"].get(word, [""])), text)
    return re.sub(r"\s+([,.!?])", r"\1", re.sub(r"  +", " ", swapped)).strip()


def _lower_first(text: str) -> str:
    return text if re.match(r"I\b|I['’]", text) else text[:1].lower() + text[1:]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _draft(card: Card, history: Sequence[Turn], body: list[str], rng: random.Random) -> str:
    """One attempt: sentences within the card's limits, what it demands, then marks and case."""
    rules = {check.kind: check for check in checks_of(card)}
    topic = _topic(history, rng)
    asks = "end_question" in rules or ("no_question" not in rules and rng.random() < 0.4)
    most = 2 if "max_words" in rules else rng.choice([2, 3])
    wanted = int(rules["max_sentences"].value or 1) if "max_sentences" in rules else most
    room = max(1, wanted - asks)
    body = [s for s in body if "?" not in s] if asks or "no_question" in rules else list(body)
    body = [s for s in body if len(words(s)) <= _budget(rules, asks)][:room]
    own = bool(body)
    body = body or [_phrase("statements", "plain", topic, rng)]
    if persona(card, " ".join(body)) <= 0 and (line := _voice(card, history, topic, rng)) is not None:
        body = _in_character(line, body, own, room, rng)
    text = _mention(" ".join(_marked(s) for s in body), rules, room, rng)
    if "start_word" in rules and words(text)[:1] != [rules["start_word"].value]:
        text = f"{_upper_first(str(rules['start_word'].value))}, {_lower_first(text)}"
    if asks and wanted == 1:
        text = f"{text.rstrip('.!')}, or what do you say?"
    elif asks:
        text = f"{text} {_phrase('questions', 'plain_questions', topic, rng)}"
    return _finish(text, list(rules.values()), rng)


def _in_character(line: str, body: list[str], own: bool, room: int, rng: random.Random) -> list[str]:
    """The sentences with a line of the character's own life before or after them; what the reply had of its own stays.

    Args:
        line: the character's.
        body: sentences.
        own: whether they are the reply's, and no phrases.
        room: most sentences.
        rng: for the order.
    """
    if not own and rng.random() < 0.5:
        return [line]
    before = rng.random() < 0.5
    if room == 1:
        return [_joined(line, body[0], rng) if before else _joined(body[0], line, rng)]
    body = body[: room - 1]
    return [line, *body] if before else [*body, line]


def _budget(rules: Mapping[str, Check], asks: bool) -> int:
    """Words that one kept sentence may have, so that the additions still fit."""
    limit = int(rules["max_words"].value or 0) if "max_words" in rules else 36
    return limit - 8 - 8 * ("mention" in rules) - 2 * ("start_word" in rules) - 6 * asks


def _marked(sentence: str) -> str:
    return sentence if ends_sentence(sentence) else f"{sentence}."


def _mention(text: str, rules: Mapping[str, Check], room: int, rng: random.Random) -> str:
    """The text with the word that the card always wants, in a sentence of its own or as a form of address."""
    check = rules.get("mention")
    if check is None or obeys(check, text):
        return text
    word = str(check.value)
    if word in _FORMS_OF_ADDRESS:
        return _upper_first(rng.choice(_phrases()["addressed"]).format(m=word) + _lower_first(text))
    added = str(rng.choice(_phrases()["mentions"])).format(m=word)
    parts = sentences(text)
    if len(parts) < room:
        return " ".join([*parts, added])
    return " ".join([*parts[: room - 1], _joined(parts[room - 1], added, rng)])


def _finish(text: str, checks: Sequence[Check], rng: random.Random) -> str:
    """Marks, emoji, digits, forbidden words and case, in an order in which none undoes another."""
    kinds = {check.kind for check in checks}
    for check in checks:
        if check.kind == "forbid_word":
            text = _without_word(text, str(check.value), rng)
    if "no_digits" in kinds:
        text = re.sub(r"\s*\d[\d.,:]*", " some", text)
    if kinds & {"no_exclamation", "one_exclamation"}:
        text = text.replace("!", ".")
    if "one_exclamation" in kinds:
        text = re.sub(r"\.(?=\s|$)", "!", text, count=1)
    if kinds & {"no_emoji", "one_emoji"}:
        text = emoji.replace_emoji(text, "").strip()
    if "one_emoji" in kinds:
        text = f"{text} {rng.choice(_phrases()['emoji'])}"
    text = re.sub(r"\s+", " ", text).strip()
    return text.lower() if "lowercase" in kinds else _upper_first(text)


def rewrite(card: Card, history: Sequence[Turn], reply: str, rng: random.Random) -> str | None:
    """An edited reply that obeys the card and is in character.

    Args:
        card: the character.
        history: turns, the last one the user's.
        reply: the text to edit.
        rng: for the choice among phrases.

    Returns:
        of several drafts that obey every instruction and speak of the character's own world, the best by the hidden
        utility; None if none does.
    """
    checks, body = checks_of(card), _usable(reply, history)
    spoken = card.card_id in voices()
    best: tuple[float, str] | None = None
    obedient = 0
    for _ in range(ATTEMPTS):
        text = _draft(card, history, body, rng)
        if not all(obeys(check, text) for check in checks) or text == reply:
            continue
        if spoken and persona(card, text) <= 0:
            continue
        # People do not all write the same best reply.
        worth = utility(card, history, text) + rng.gauss(0.0, 0.4)
        if best is None or worth > best[0]:
            best = (worth, text)
        obedient += 1
        if obedient == 4:
            break
    return best[1] if best else None
