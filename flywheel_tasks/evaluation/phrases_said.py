"""Words and phrases that a card demands or forbids: "never say 'sorry'", "always mention the sea".

Only what a verb of speech governs is to be said: a ship called "The Gull" need not be named in every reply.
"""

import re
from typing import NamedTuple

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

QUOTE = re.compile(r'"([^"]+)"|(?<!\w)\'((?:[^\']|(?<=\w)\'(?=\w))+)\'(?!\w)|(?<![\w*])\*([^*]+)\*')
# What may stand between the verb and what is quoted: "say [the exact words]".
_WORD = (
    r"(?: (?:the|an?|any|exact|these|those|following|single|both|either|ever|also|only|always))*"
    r"(?: (?:words?|names?|phrases?|expressions?|exclamations?|greetings?|questions?))?{like}[\s:,]*$"
)
_WORDS, _WORDS_LIKE = _WORD.replace("{like}", ""), _WORD.replace("{like}", "(?: (?:such as|like))?")
_SAY = (
    r"(?:say|us(?:e|(?=ing))|mention|utter|includ(?:e|(?=ing))|contain|repeat|shout|exclaim|writ(?:e|(?=ing))"
    r"|typ(?:e|(?=ing)))(?:ing)?"
)
_USER = r"(?:the user|users|everyone|everybody|people|them|him|her|me|whoever (?:\w+ ){1,4})"
_PLACES = (
    ("start", rf"\b{STARTS}{OBJECT}{{0,6}} (?:with|on|by (?:saying|using))"),
    ("end", rf"\b{ENDS}{OBJECT}{{0,6}} (?:with|on|by (?:saying|using))"),
    ("mention", rf"\b{_SAY}"),
    ("mention", rf"\b(?:call(?:ing)? {_USER}(?: by)?|(?:address(?:ing)?|refer(?:ring)? to) {_USER} as)"),
)
_OF_REPLY = re.compile(rf"\b{REPLY}\b[^,;]*\b(?:includes?|contains?|mentions?|has|have|uses?){_WORDS}")
_WORKED_IN = re.compile(rf"\b(?:work|put|weave|slip|fit|drop|add|insert|sneak)(?:ing)?{_WORDS}")
_BARE_BAN = re.compile(rf"\b(?!not\b|\w+n't){NOT}{_WORDS_LIKE}")
_IN_REPLY = rf"(?:in|into|to|of|at the (?:end|start|beginning) of) (?:\w+ ){{0,4}}?(?:{REPLY}|sentences?|everything)\b"
# How a demand goes on after what is to be said; after anything else ("'aye' for 'yes'") it is another demand.
_GOES_ON = re.compile(
    rf"\s*(?:$|[.,;:!?)]|(?:somewhere |exactly |at least |once |twice |\w+ times )*{_IN_REPLY}"
    r"|(?:somewhere|at least|exactly|once|twice|every time|each time|always|no matter|whatever|and|then)\b)"
)
# A ban of a place or a number is none of the word: "never say 'very' twice".
_PARTLY = re.compile(
    r"[^.;]*?\b(?:more than|twice|once|times|in a row|again|too (?:often|much)|at the (?:start|end|beginning)|before"
    r"|after|first|to begin|for|alone|without)\b"
)
_JOINED = re.compile(r"\s*,?\s*(or|and|nor)?\s*(?:the (?:words?|phrases?) )?", re.IGNORECASE)
_REPLACED = re.compile(
    r"(?:\b(?:instead of|rather than|in place of|in lieu of)(?: saying| using)?|,\s*not)" + _WORDS
)
_REPLACE = re.compile(rf"\breplace{_WORDS}")
_EXCHANGE = re.compile(
    r"\b(?:instead of|rather than|in place of|in lieu of|replace|swap|substitute)\b|,\s*not(?: the words?)?\s*$"
)
_SUBJECT = re.compile(r"(?:^|[,;:]|\b(?:and|but)\b)\s*(?:the (?:words?|phrases?) )?$")
_PASSES = (
    r"(?:appear|occur|(?:pass|cross|leave) your (?:lips|mouth)|be (?:said|used|written|mentioned)|come up)\b"
)
_BANNED_AFTER = re.compile(
    rf"\s*(?:(?:must|should|may|can|shall|will|do|does) (?:not|never)|\w+n't|cannot|never) (?:ever )?{_PASSES}"
    r"|\s*(?:is|are) (?:strictly )?(?:forbidden|banned|taboo|off limits|prohibited|not allowed|never (?:used|said))\b"
)
_DEMANDED_AFTER = re.compile(
    rf"\s*(?:must|should|shall|has to|have to|needs? to) (?:always )?{_PASSES} (?:somewhere )?{_IN_REPLY}"
)


class _Group(NamedTuple):
    """Quoted phrases that one verb governs, the words before and after them, and whether any one of them will do."""

    phrases: list[str]
    lead: str
    after: str
    either: bool


def quoted(sentence: str) -> dict[str, Test]:
    """A quoted word or phrase that must, or must not, be said, or start or end the reply.

    Args:
        sentence: of a card, with straight quotes.

    Returns:
        tests by kind, such as ``mention:tea`` or ``not_start:well``.
    """
    groups = _groups(sentence)
    between = " \n ".join([group.lead for group in groups])
    if any(_EXCHANGE.search(group.lead) for group in groups) or (
        groups and _EXCHANGE.search(groups[-1].after)
    ):
        return _exchanged(groups, between)
    found: dict[str, Test] = {}
    before: bool | None = False
    for group in groups:
        place, banned = _demand(group, before)
        before = banned
        if place is None or banned is None:
            continue
        if banned and _PARTLY.match(group.after):
            continue
        goes_on = _GOES_ON.match(group.after) or _DEMANDED_AFTER.match(group.after)
        if not banned and (group.either or not goes_on):
            continue
        for phrase in group.phrases:
            test = _test(place, phrase)
            kind = f"not_{place}" if banned else place
            found[f"{kind}:{phrase.lower()}"] = negated(test) if banned else test
    return found


def _groups(sentence: str) -> list[_Group]:
    matches = [match for match in QUOTE.finditer(sentence) if _is_quote(sentence, match)]
    groups: list[_Group] = []
    for place, match in enumerate(matches):
        start = matches[place - 1].end() if place else 0
        stop = matches[place + 1].start() if place + 1 < len(matches) else len(sentence)
        phrase = next(group for group in match.groups() if group is not None).strip(" ,.")
        lead, after = sentence[start : match.start()].lower(), sentence[match.end() : stop].lower()
        joined = _JOINED.fullmatch(lead)
        if joined and groups:
            last = groups[-1]
            either = last.either or joined.group(1) in {"or", "nor"}
            groups[-1] = last._replace(phrases=[*last.phrases, phrase], after=after, either=either)
        else:
            groups.append(_Group([phrase], lead, after, False))
    return [group._replace(phrases=[p for p in group.phrases if p]) for group in groups]


def _is_quote(sentence: str, match: re.Match[str]) -> bool:
    """Asterisks set off actions and emphasis; they quote only after "say" and "the word"."""
    lead = sentence[: match.start()].lower()
    return match.group(3) is None or bool(
        re.search(r"\b(?:say|saying|mention|the words?|the phrase)\s*$", lead)
    )


def _demand(group: _Group, before: bool | None) -> tuple[str | None, bool | None]:
    """Where the phrases must, or must not, be: the place (None for no demand) and whether it is forbidden."""
    lead = group.lead
    for place, verb in _PLACES:
        match = re.search(rf"{verb}{_WORDS_LIKE}", lead)
        if match is None or not is_told(lead[: match.start()]):
            continue
        banned = _polarity(lead, lead[: match.start()], before)
        example = re.search(r"\b(?:such as|like)\W*$", lead)
        return (None if example and not banned else place), banned
    if _OF_REPLY.search(lead):
        return "mention", prohibited(lead)
    match = _WORKED_IN.search(lead)
    if match and is_told(lead[: match.start()]) and re.match(rf"\s*(?:\w+ )?{_IN_REPLY}", group.after):
        return "mention", _polarity(lead, lead[: match.start()], before)
    if _BARE_BAN.search(lead) and _GOES_ON.match(group.after):
        return "mention", True
    if _SUBJECT.search(lead) and _BANNED_AFTER.match(group.after):
        return "mention", True
    if _SUBJECT.search(lead) and _DEMANDED_AFTER.match(group.after):
        return "mention", False
    return None, None


def _polarity(lead: str, before_verb: str, before: bool | None) -> bool | None:
    """As :func:`prohibited`, after another demand of the same sentence."""
    own = prohibited(before_verb)
    if before is False or own is not False:
        return own
    if re.match(r"\s*,?\s*n?or\b", lead):
        return before
    return False if re.search(r";|\bbut\b|\balways\b|\bmust\b", lead) else None


def _exchanged(groups: list[_Group], between: str) -> dict[str, Test]:
    """Of "'aye' instead of 'yes'" only the ban of what is replaced: the other need not come up in a reply."""
    others = re.sub(r",\s*not\b", "", between)
    if re.search(rf"\b(?:{NOT}|{ENDS}|{STARTS})\b", others):
        return {}
    found: dict[str, Test] = {}
    for group in groups:
        replaced = _REPLACE.search(group.lead) and re.match(r"\s*(?:with|by)\b", group.after)
        if replaced or _REPLACED.search(group.lead):
            found |= {f"not_mention:{p.lower()}": negated(_test("mention", p)) for p in group.phrases}
    return found


def _test(place: str, phrase: str) -> Test:
    pattern = {"start": rf"^[\W_]*{_phrase(phrase)}", "end": rf"{_phrase(phrase)}[\W_]*$"}
    compiled = re.compile(pattern.get(place, _phrase(phrase)), re.IGNORECASE)
    return lambda reply: compiled.search(reply) is not None


def _phrase(phrase: str) -> str:
    """The phrase as whole words, any spaces, and a plural ending."""
    body = r"\s+".join(re.escape(part) for part in phrase.split())
    plural = "(?:e?s)?" if phrase[-1:].isalpha() and len(phrase) > 2 else ""
    return rf"(?<!\w){body}{plural}(?!\w)"


_MENTION = re.compile(
    r"\b(mention(?:s|ing)?|refer(?:ring)? to|say|use) (the word |(?:the|your|an?) )?([\w-]+)"
    rf"(?= (?:(?:somewhere |once |twice |at least |exactly )*{_IN_REPLY}|at least|at all|once|exactly|somewhere|ever\b"
    rf"|(?:every|each) (?:time|{REPLY}))|\s*[,;!]|\s*\.?\s*$)",
)
_VAGUE = re.compile(
    r"it|them|that|this|(?:some|any)(?:thing|one)|names?|user|yourself|words?|language|slang|emojis?|questions?|place"
    r"|colou?r|smell|fact|sentences?|lists?|digits?|numbers?|case|exclamation|marks|punctuation|lowercase|letters"
    r"|formal|humou?r|rhymes?|metaphors?|things?|age|mood|topic|subject|opinion"
)


def bare_words(sentence: str) -> dict[str, Test]:
    """One word without quotes: "always mention the sea", "never use the word very".

    Args:
        sentence: of a card, with straight quotes.

    Returns:
        tests by kind, such as ``mention:sea``.
    """
    if QUOTE.search(sentence):
        return {}
    text = sentence.lower()
    found: dict[str, Test] = {}
    for match in _MENTION.finditer(text):
        verb, word = match.group(1), match.group(3)
        named = match.group(2) == "the word "
        if _VAGUE.fullmatch(word) or (verb in {"say", "use"} and not named):
            continue
        before, after = text[: match.start()], text[match.end() :]
        banned = prohibited(before)
        if banned is None or not is_told(before):
            continue
        if verb == "mentions" and not re.search(rf"\b{REPLY}\s*$", before):
            continue  # somebody else mentions it
        if re.match(r",?[^.;:]*\bor\b", after) if not banned else _PARTLY.match(after):
            continue
        test = _test("mention", word)
        found[f"{'not_' if banned else ''}mention:{word}"] = negated(test) if banned else test
    return found
