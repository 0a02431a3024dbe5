"""How a card asks replies to look: endings and beginnings, whole sentences, letter case, grammar."""

import re

from flywheel_tasks.evaluation.polarity import (
    ENDS,
    NOT,
    OBJECT,
    REPLY,
    STARTS,
    Test,
    is_told,
    negated,
    prohibited,
)
from flywheel_tasks.style.text import asks, cut_off, emoji_count, ending

_MARKS: tuple[tuple[str, str, str, Test], ...] = (
    ("end_question", ENDS, r"(?:question|asking)", asks),
    ("end_exclamation", ENDS, r"exclamation", lambda reply: ending(reply).endswith("!")),
    (
        "end_ellipsis",
        ENDS,
        r"(?:ellipsis|three dots|\.\.\.)",
        lambda reply: ending(reply).endswith(("...", "…")),
    ),
    ("end_emoji", ENDS, r"(?:emoji|emoticon)", lambda reply: _edge_emoji(reply, first=False)),
    (
        "end_full_stop",
        ENDS,
        r"(?:full stop|period)",
        lambda reply: ending(reply).endswith((".", "。", "।", "۔")),
    ),
    ("start_emoji", STARTS, r"(?:emoji|emoticon)", lambda reply: _edge_emoji(reply, first=True)),
)
# Between "with" and the mark: words that make the mark another's, or no mark ("with an answer to the question").
_ASTRAY = re.compile(
    rf"\b(?:to|answer\w*|repeat\w*|instead|than|about|before|after|for|from|{NOT})\b"
    r"|\bof (?:the|every|each|any|his|her)\b"
)


def endings(sentence: str) -> dict[str, Test]:
    """Endings and beginnings: "never end with a question", "finish by asking something back", "use full sentences".

    Args:
        sentence: of a card.

    Returns:
        tests by kind; one that is forbidden has the kind of what is demanded.
    """
    text = sentence.lower()
    found: dict[str, Test] = {}
    for kind, verb, thing, test in _MARKS:
        match = re.search(
            rf"\b{verb}{OBJECT}{{0,6}} (?:with|by|in|on)\b((?: [\w',-]+){{0,5}}?) [\"']?{thing}", text
        )
        if match is None or not is_told(text[: match.start()]) or _ASTRAY.search(match.group(1)):
            continue
        if re.match(r"\w*(?:ends|starts|es)\b|begins|opens", match.group()) and not _of_reply(
            text[: match.start()]
        ):
            continue  # somebody or something else does
        banned = prohibited(text[: match.start()])
        either = re.search(r"\bor\b", match.group(1)) or re.match(
            r"\w*(?: marks?)?,? or\b", text[match.end() :]
        )
        if banned is None or (either and not banned):
            continue
        found[kind] = negated(test) if banned else test
    whole = _WHOLE.search(text)
    if whole and is_told(text[: whole.start()]) and prohibited(text[: whole.start()]) is False:
        found["complete"] = lambda reply: not cut_off(reply)
    return found


_WHOLE = re.compile(
    r"\b(?:write|use|using|speak|talk|answer|reply|respond|in|only|always)(?: [\w']+){0,3}? (?:complete|full|whole)"
    r" sentences?\b|\bfinish (?:your|every|each) sentences?\b"
)


def _of_reply(before: str) -> bool:
    return re.search(rf"\b{REPLY}(?: (?:always|must|should|never|only))*\s*$", before) is not None


def _edge_emoji(reply: str, *, first: bool) -> bool:
    text = reply.strip()
    stripped = text.rstrip(".!?… ")
    return emoji_count(text[:2]) > 0 if first else emoji_count(stripped[-2:]) > 0


_CAPITALS = r"(?:all[- ]caps|capitals|caps|capital letters|upper ?-?case(?: letters)?)"
_SMALL = r"(?:lower ?-?case(?: letters)?|small letters)"
_OF_ALL = (
    r"(?: (?:only|always|everything|all|entirely|in|completely|strictly|purely|solely|your|the|whole|every word"
    r"|each word|every letter|every|each|must|should|be|are|is|written|to|user|you|say|it|just|nothing|but|with|plain"
    rf"|{REPLY}))"
)
_TO_THE_END = (
    r"(?=\s*(?:[.,;:!)]|$)| (?:only|always|at all times|throughout|everywhere|even|no matter|please|but"
    r"|and (?!(?:lower|upper|small|capital)))\b)"
)
_WRITES = r"(?:write|writing|type|reply|answer|respond|speak|talk|text|shout|use|using|stick|keep|everything)"


def letters(sentence: str) -> dict[str, Test]:
    """Lower case only, upper case only, no capitals.

    Args:
        sentence: of a card.

    Returns:
        the test by its kind, ``lower_case`` or ``upper_case``; nothing for a part of the reply ("the last word in
        capitals") and nothing for "never shout in capitals", which forbids only some of them.
    """
    text = sentence.lower()
    kinds = {
        kind
        for kind, case, other in (("lower_case", _SMALL, _CAPITALS), ("upper_case", _CAPITALS, _SMALL))
        if _all_in(text, case) or _none_in(text, other)
    }
    if kinds == {"lower_case"}:
        return {"lower_case": lambda reply: reply == reply.lower()}
    if kinds == {"upper_case"}:
        return {"upper_case": lambda reply: reply == reply.upper()}
    return {}


def _all_in(text: str, case: str) -> bool:
    """Whether everything is to be in a case: "write only in capitals", "small letters throughout"."""
    if re.match(rf"(?:(?:always|only|all|strictly|in) )*{case}{_TO_THE_END}", text):
        return True
    for match in re.finditer(rf"\b(?:{_WRITES}|{REPLY}){_OF_ALL}{{0,6}} {case}{_TO_THE_END}", text):
        if is_told(text[: match.start()]) or re.match(rf"{REPLY}|everything", match.group()):
            # Where a negation stands before the verb or after it ("replies are never in …"), it is another rule.
            return prohibited(text[: match.end()]) is False
    return False


def _none_in(text: str, case: str) -> bool:
    """Whether a case is forbidden altogether: "never use capital letters", "no capitals"."""
    ban = rf"\b{NOT}(?: (?:ever|use|using|write|writing|type|any|with|put|contain|have|include|a|single))*"
    one = case.replace("all[- ]caps|", "").replace("caps|", "").replace("letters", "letters?")
    return (
        re.search(rf"{ban} {one}(?=\s*(?:[.,;:!)]|$)| (?:and|or|but|at all|ever|anywhere|even)\b)", text)
        is not None
    )


_CONTRACTION = re.compile(
    r"\b\w+(?:n't|'(?:m|re|ve|ll|d))\b|\b(?:it|that|he|she|there|what|who|let)'s\b", re.IGNORECASE
)
# "My, what a day!" and "Oh my!" speak of nobody.
_FIRST_PERSON = re.compile(r"\b(?:I|(?i:me|mine|myself|my(?![,!])))\b")


def grammar(sentence: str) -> dict[str, Test]:
    """No contractions; speaking of oneself in the third person.

    Args:
        sentence: of a card.

    Returns:
        tests by kind.
    """
    text = sentence.lower()
    found: dict[str, Test] = {}
    if re.search(rf"\b{NOT}\b[\w' ]*\bcontractions?\b", text):
        found["no_contractions"] = lambda reply: _CONTRACTION.search(reply) is None
    third = re.search(r"\bin (?:the )?third[- ]person\b", text)
    if third and not re.search(
        rf"\b(?:{NOT}|users?|others|people|(?:first|second)[- ]person|dialogue)\b", text
    ):
        # Who is quoted speaks of himself: "I am here," she says.
        found["third_person"] = lambda reply: _FIRST_PERSON.search(re.sub(r'"[^"]*"', " ", reply)) is None
    return found
