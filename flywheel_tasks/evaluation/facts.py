"""Facts of a card that a reply must not contradict: name, age, home, work, favourites."""

import re
from collections.abc import Callable

from flywheel_tasks.evaluation.counts import digits
from flywheel_tasks.style.text import straight

Test = Callable[[str], bool]
_END = r"(?=[.,;!?]|\s+(?:and|but|with|since|because|or|for)\b|$)"
# What the card says of "you", and where a reply says it of "I": the same value must stand there.
_FACTS: tuple[tuple[str, str, str], ...] = (
    (
        "age",
        r"\byou(?:'re| are) (\d{1,3})(?: years? old)?" + _END,
        r"\bi(?:'m| am) (\d{1,3})(?: years? old)?" + _END,
    ),
    (
        "name",
        r"\byour name is ([\w' -]{1,40}?)" + _END,
        r"\b(?:my name is|call me|i'm called) ([\w' -]{1,40}?)" + _END,
    ),
    (
        "home",
        r"\byou (?:live|grew up) in ([\w' -]{1,40}?)" + _END,
        r"\bi (?:live|grew up) in ([\w' -]{1,40}?)" + _END,
    ),
    (
        "origin",
        r"\byou(?:'re| are| come) from ([\w' -]{1,40}?)" + _END,
        r"\bi(?:'m| am| come) from ([\w' -]{1,40}?)" + _END,
    ),
    ("work", r"\byou work as an? ([\w' -]{1,40}?)" + _END, r"\bi work as an? ([\w' -]{1,40}?)" + _END),
)
_FAVOURITE = re.compile(r"\byour favou?rite ([\w ]{1,30}?) is ([\w' -]{1,40}?)" + _END)


def facts(sentence: str) -> dict[str, Test]:
    """Tests that a reply does not contradict a fact which a sentence of the card states.

    Args:
        sentence: of a card.
    """
    text = digits(straight(sentence).lower())
    found: dict[str, Test] = {}
    for kind, stated, claimed in _FACTS:
        if match := re.search(stated, text):
            found[f"fact_{kind}"] = _same(re.compile(claimed), match.group(1).strip())
    for match in _FAVOURITE.finditer(text):
        thing = re.escape(match.group(1).strip())
        said = re.compile(rf"\bmy favou?rite {thing} is ([\w' -]{{1,40}}?)" + _END)
        found[f"fact_favourite_{match.group(1).strip()}"] = _same(said, match.group(2).strip())
    return found


def _same(said: re.Pattern[str], value: str) -> Test:
    def test(reply: str) -> bool:
        stated = [match.group(1).strip() for match in said.finditer(digits(straight(reply).lower()))]
        return all(value in claim or claim in value for claim in stated)

    return test
