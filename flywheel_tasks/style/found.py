"""Style features that are found in the data: templates and openings that recur over the replies."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from flywheel_tasks.chat.card import Turn
from flywheel_tasks.evaluation import templates
from flywheel_tasks.style import text
from flywheel_tasks.style.features import Feature

MOST_TEMPLATES = 8
MOST_OPENINGS = 6
OPENING_WORDS = 2
TEMPLATE, OPENING = "template: ", "opening: "  # how the names of found features begin
_LEAST, _SHARE = 3, 0.05


def found_features(replies: Sequence[templates.Reply], background: Sequence[str]) -> dict[str, Feature]:
    """Binary features of the commonest templates and openings of some replies.

    Args:
        replies: of the policies that are compared, with what each may repeat.
        background: turns that people wrote.
    """
    features: dict[str, Feature] = {}
    for template in templates.distinct(templates.find(replies, background).values(), MOST_TEMPLATES):
        name = f"{TEMPLATE}{template.text}"
        features[name] = Feature(name, "binary", f"uses “{template.text}”", _with_template(template.text))
    for words in _openings([reply.text for reply in replies]):
        name = f"{OPENING}{' '.join(words)}"
        features[name] = Feature(name, "binary", f"opens with “{' '.join(words)}”", _with_opening(words))
    return features


def _with_template(shown: str) -> Callable[[Sequence[Turn], str], float]:
    return lambda history, reply: shown in templates.shown(reply)


def _with_opening(words: tuple[str, ...]) -> Callable[[Sequence[Turn], str], float]:
    return lambda history, reply: tuple(text.words(reply)[:OPENING_WORDS]) == words


def _openings(replies: Sequence[str]) -> list[tuple[str, ...]]:
    counts = Counter(tuple(text.words(reply)[:OPENING_WORDS]) for reply in replies if re.search(r"\w", reply))
    least = max(_LEAST, _SHARE * len(replies))
    common = [(words, n) for words, n in counts.items() if n >= least and len(words) == OPENING_WORDS]
    return [words for words, _ in sorted(common, key=lambda item: (-item[1], item[0]))[:MOST_OPENINGS]]
