"""Facts of a card that a reply must not contradict: name, age, home, work, favourites."""

import re

from flywheel_tasks.evaluation.counts import digits
from flywheel_tasks.evaluation.polarity import Test, prohibited
from flywheel_tasks.style.text import ABBREVIATIONS, straight

_END = r"(?=[.,;!?]|\s+(?:and|but|with|since|because|or|for)\b|$)"
# A name of a person or a place, in the case it was written in: "a small flat" and "hope" are none.
_SMALL = r"(?:of|the|de|la|le|van|von|al|upon|on)"
_CAPITAL = "[A-ZÀ-ÖØ-ÞŁŚŠŽČŘĐİΑ-ΩА-ЯЁ]"
_PROPER = rf"({_CAPITAL}[\w'-]*(?: (?:{_SMALL} )*{_CAPITAL}[\w'-]*){{0,4}})"
_PROPER_END = (
    r"(?=\s*(?:[.,;:!?\"*()–—]|['-](?!\w)|$)|\s+(?:and|but|with|since|because|or|for|now|these|in|at|by|near|on|where|when|as"
    r"|today|still|too|again|under)\b)"
)
# After other words "call me" calls nothing: "they call me", "don't call me".
_CALL_ME = (
    r"(?:(?:^|[.!?,;:\"(*\n–—-]\s*)"
    r"|\b(?:just|please|simply|so|(?<!don't )(?<!not )you (?:can|may|should)) )call me"
)
# What the card says of "you", and where a reply says it of "I": the same name must stand there.
_NAMES: tuple[tuple[str, str, str], ...] = (
    ("name", r"\byour name is", rf"(?:\bmy name is|\bi(?:'m| am) called|{_CALL_ME})"),
    ("home", r"\byou live in", r"(?<!if )\bi live in"),
    ("youth", r"\byou grew up in", r"\bi grew up in"),
    ("origin", r"\byou(?:'re| are| come) from", r"\bi(?:'m| am| come) from"),
)
_TITLES = frozenset(
    {"captain", "doctor", "dr", "sir", "madam", "boss", "chef", "coach", "sister", "granny", "lady"}
)
_AGE = re.compile(r"\byou(?:'re| are) (\d{1,3})(?: (years? old|years? of age)\b)?(?! and \d)" + _END)
_SAID_AGE = re.compile(
    r"(?<!if )(?<!like )\bi(?:'m| am) (\d{1,3})"
    r"(?:( years? (?:old|of age)\b)(?! than| when)|(?=[,;!?]|\.(?!\d)|$| and i\b))"
)
_WORK = r"\b{who} work as an? ([\w' -]{{1,40}}?)" + _END
_FAVOURITE = re.compile(r"\byour favou?rite ([\w ]{1,30}?) is ([\w' -]{1,40}?)" + _END)


def facts(sentence: str) -> dict[str, Test]:
    """Tests that a reply does not contradict a fact which a sentence of the card states.

    Args:
        sentence: of a card.

    Returns:
        tests by kind, such as ``fact_age``.
    """
    original = re.sub(rf"\b({'|'.join(ABBREVIATIONS)})\.", r"\1", straight(sentence))
    text = digits(original.lower())
    found: dict[str, Test] = {}
    for kind, stated, claimed in _NAMES:
        match = re.search(rf"(?i:{stated}) {_PROPER}{_PROPER_END}", original)
        if match and prohibited(original[: match.start()]) is False:
            found[f"fact_{kind}"] = _same_name(
                re.compile(rf"(?i:{claimed}) {_PROPER}{_PROPER_END}"), match.group(1)
            )
    age = _AGE.search(text)
    # "You are one" is seldom an age.
    if age and (age.group(2) or int(age.group(1)) > 12) and prohibited(text[: age.start()]) is False:
        found["fact_age"] = _same_age(int(age.group(1)))
    work = re.search(_WORK.format(who="you"), text)
    if work and prohibited(text[: work.start()]) is False:
        found["fact_work"] = _same(re.compile(_WORK.format(who="i")), work.group(1))
    for match in _FAVOURITE.finditer(text):
        thing = match.group(1).strip()
        if match.group(2).startswith("not "):
            continue
        said = re.compile(rf"\bmy favou?rite {re.escape(thing)} is ([\w' -]{{1,40}}?)" + _END)
        found[f"fact_favourite_{thing}"] = _same(said, match.group(2))
    return found


def _agree(value: str, claim: str) -> bool:
    """Whether one says no more than the other: "Oslo" and "Oslo in Norway"."""
    one, other = set(value.lower().split()), set(claim.lower().split())
    return one <= other or other <= one


def _same(said: re.Pattern[str], value: str) -> Test:
    def test(reply: str) -> bool:
        text = digits(straight(reply).lower())
        return all(_agree(value, match.group(1)) for match in said.finditer(text))

    return test


def _same_name(said: re.Pattern[str], value: str) -> Test:
    def test(reply: str) -> bool:
        text = re.sub(rf"\b({'|'.join(ABBREVIATIONS)})\.", r"\1", straight(reply))
        if text == text.upper():
            return True  # in capitals throughout, a name looks like any word
        claims = (match.group(1) for match in said.finditer(text))
        return all(_agree(value, claim) or claim.lower() in _TITLES for claim in claims)

    return test


def _same_age(years: int) -> Test:
    def test(reply: str) -> bool:
        text = straight(reply).lower()
        for match in _SAID_AGE.finditer(digits(text)):
            claim = int(match.group(1))
            # Spelled and without "years old", a small number is as often something else: "I am one."
            sure = match.group(2) or 12 < claim < 100 or re.search(rf"\bi(?:'m| am) {claim}\b", text)
            if sure and claim != years:
                return False
        return True

    return test
