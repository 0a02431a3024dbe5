"""Tone of a reply by set phrases and words: preachy, positive. Blunt; a judge, where one is set, replaces them."""

import re

from flywheel_tasks.evaluation.wording import pattern_of, words_of
from flywheel_tasks.style.text import straight, words

_REACH = 3  # words after a negation that it turns
_HAPPY = re.compile(r"[😀-😆😉-😍🙂😊🥰🤗💖-💞❤♥🎉🌞🌈✨👍]|[:;]-?[)D]")
_UNHAPPY = re.compile(r"[😞-😣😢😭😠😡💔👎🙁☹]|:-?\(")


def preachy(reply: str) -> bool:
    """Whether a reply moralises, lectures or warns by one of the usual phrases."""
    return bool(pattern_of("preachy").search(straight(reply)))


def positive(reply: str) -> bool:
    """Whether a reply has more words and emoji of pleasure than of displeasure; a negation turns the next words."""
    balance = 0
    negated = 0
    for word in words(reply):
        value = (word in words_of("positive")) - (word in words_of("negative"))
        balance += -value if negated > 0 else value
        negated = _REACH if word in words_of("negations") else negated - 1
    return balance + len(_HAPPY.findall(reply)) - len(_UNHAPPY.findall(reply)) > 0
