"""What a card asks to count in a reply: "at most 20 words", "never use emoji", "ask exactly one question"."""

import re
from collections.abc import Callable

from flywheel_tasks.evaluation.counts import Limit, digits, limit
from flywheel_tasks.evaluation.polarity import ENDS, NOT, REPLY, STARTS, Test, is_told, left_open
from flywheel_tasks.style.text import emoji_count, exclamations, has_list, questions, sentences, words

_COUNTERS: dict[str, tuple[str, Callable[[str], int]]] = {
    "words": (r"words?", lambda reply: len(words(reply))),
    "sentences": (r"sentences?", sentences),
    "emoji": (r"emojis?|emoticons?", emoji_count),
    "exclamation_marks": (r"exclamations?(?: (?:mark|point)s?)?", exclamations),
    "questions": (r"questions?(?: marks?)?", questions),
    "digits": (r"digits?|numerals?", lambda reply: sum(c.isdecimal() for c in reply)),
    "lines": (
        r"lines?(?![- ]?breaks?)|paragraphs?",
        lambda reply: len([x for x in reply.splitlines() if x.strip()]),
    ),
    "commas": (r"commas?", lambda reply: reply.count(",")),
    "characters": (r"characters?|letters", len),
    "lists": (
        r"(?:bulleted |bullet |numbered )?lists?|bullet[- ]points?|bullets",
        lambda reply: int(has_list(reply)),
    ),
    "line_breaks": (r"line[- ]?breaks?|new ?lines?", lambda reply: reply.strip().count("\n")),
    "ellipses": (r"ellips[ei]s", lambda reply: len(re.findall(r"\.{3,}|…", reply))),
    "hashtags": (r"hash ?tags?", lambda reply: len(re.findall(r"(?<!\w)#\w", reply))),
    "links": (r"links?|urls?", lambda reply: len(re.findall(r"https?://|www\.", reply))),
}
_PRESENT = {"emoji", "exclamation_marks", "questions", "digits", "ellipses", "hashtags"}
_NEVER = {*_PRESENT, "commas", "lists", "line_breaks", "links"}
_FEWEST = 15  # a limit of fewer "characters" or "letters" is of persons, or of something else than a reply
# What others ask, write or send: "never dodge a question", "do not open links".
_THEIRS = (
    r"(?:answer|ignore|dodge|avoid|evade|repeat|quote|handle|take|get|receive|understand|welcome|like|love|hate|fear|face"
    r"|accept|tolerate|skip|leave|refuse|deflect|reply to|respond to|react to|comment on|read|follow|click|laugh at"
    r"|mind|users?'s?|their|his|her)(?:ing|s)?"
)
_ASKS = r"(?:ask(?:ing)?|pos(?:e|ing)|put(?:ting)?|us(?:e|ing)|rais(?:e|ing)|includ(?:e|ing)|add(?:ing)?)"
_THEIR_QUESTIONS = re.compile(
    rf"\b{_THEIRS}\b(?:(?!\b(?:{_ASKS}|{ENDS}|with|no)\b)[^.,;:])*?\bquestions?\b(?! marks?)"
)
_LISTED = (
    r"(?: (?:the user|users|them|people|anyone|any|an?|single|back|more|further|of|your|own|ever|or|nor|emojis?|lists?"
    r"|exclamations?|marks?|points?|digits?|links?|hash ?tags?|commas?|ellipses),?)"
)
_NO_QUESTIONS = re.compile(
    rf"(?:\b{NOT}(?: ever)? {_ASKS}|(?:^|,|\b(?:reply|answer|respond|write|speak)) *(?:no|without)){_LISTED}{{0,8}}"
    r" questions?(?! marks?)"
    r"(?=\s*(?:[.,;!]|$)| (?:and|or|nor|but|ever|at all|back|yourself|(?:to|of) the user|in (?:your|any|an?))\b)"
)
_A_QUESTION = re.compile(
    r"\b(?:ask|pose|put|raise|include|add|use|contains?)\b(?: (?:the user|them|everyone|people|him|her|back|at least))*"
    r" (?:an?|some|1) (?:[\w-]+ )?questions?\b(?! marks?)(?! or\b)"
)


def counted(sentence: str) -> dict[str, Test]:
    """Limits on counts, "never use X" and "always use a X".

    Args:
        sentence: of a card, with straight quotes.

    Returns:
        tests by what is counted; of a sentence that only allows ("you may use up to two emoji"), upper limits.
    """
    text = digits(re.sub(r'"[^"]*"|(?<!\w)\'[^\']*\'(?!\w)', " ", sentence.lower()))
    found: dict[str, Test] = {}
    for name, (noun, count) in _COUNTERS.items():
        bound = _question_bound(text) if name == "questions" else _bound(name, text, noun)
        if bound in (None, Limit()) or (bound.low is not None and left_open(text)):
            continue
        if name == "lists" and max(bound.low or 0, bound.high or 0) > 1:
            continue  # of their items
        if name == "characters" and (bound.high or _FEWEST) < _FEWEST:
            continue
        found[name] = _within(bound, count)
    return found


def _within(bound: Limit, count: Callable[[str], int]) -> Test:
    return lambda reply: bound.holds(count(reply))


def _bound(name: str, text: str, noun: str) -> Limit | None:
    if bound := limit(text, noun):
        return bound
    if name in _NEVER and re.search(_never(noun), text):
        return Limit(high=0)
    return Limit(low=1) if name in _PRESENT and re.search(_always(noun), text) else None


def _question_bound(text: str) -> Limit | None:
    """Of questions that the character asks; a question of the user is a noun like any other."""
    own = _THEIR_QUESTIONS.sub(" ", text)
    if bound := limit(own, _COUNTERS["questions"][0]):
        return bound
    if _NO_QUESTIONS.search(text):
        return Limit(high=0)
    if not re.search(rf"\b(?:{NOT}|{ENDS}|{STARTS})\b", text) and any(
        is_told(text[: match.start()]) for match in _A_QUESTION.finditer(text)
    ):
        return Limit(low=1)
    return _bound("questions", text, "question marks?")


# What may stand right before the thing in "never use any emoji": any other word narrows it ("sad emoji", "long lists").
_LEADS = (
    r"(?:us(?:e|ing)|writ(?:e|ing)|send(?:ing)?|includ(?:e|ing)|add(?:ing)?|put(?:ting)?|typ(?:e|ing)|post(?:ing)?"
    r"|contain(?:ing)?|insert(?:ing)?|hav(?:e|ing)|mak(?:e|ing)|giv(?:e|ing)|produc(?:e|ing)|shar(?:e|ing)|with|without|in"
    rf"|(?:{REPLY}|text|anything) as|to|any|an?|single|your|of|or|and|nor|ever|even|no)"
)
# What may follow it: an end, or words that narrow nothing; "lists longer than three items" and "emoji spam" do.
_WHERE = (
    r"(?:(?:any|all|an?|the|this|each|every|of|your) )*"
    rf"(?:{REPLY}|conversations?|chats?|text|writing|speech|dialogue)"
)
_FOLLOWS = (
    r"(?=\s*(?:[.,;!()\u2013\u2014-]|$)|: ?\w"
    r"| (?:and|or|nor|ever|at all|at any time|altogether|entirely|completely|anywhere|whatsoever|either|please|for any"
    r"|of any (?:kind|sort|type)|under any circumstances?"
    rf"|no matter|in {_WHERE}|to (?:the|an?|any\w*|users?|them|people|him|her)|are|is|because|since|but)\b)"
)


def _never(noun: str) -> str:
    """Pattern of "never use emoji", "no lists or emoji"; not of "never use digits for dates", which bans a use."""
    astray = rf"but\b|and (?:always|use|end)\b|(?:{ENDS}|{STARTS}|{_THEIRS})\b"
    lead = rf"(?:(?: (?!{astray})[\w'/-]+,?){{0,5}}? (?:{_LEADS}|(?!{astray})[\w'/-]+,))?"
    return rf"\b{NOT}\b,?{lead} (?>{noun})\b{_FOLLOWS}"


def _always(noun: str) -> str:
    """Pattern of "always use a question mark", "include an emoji"; an ending is another check."""
    return (
        rf"^(?!.*\b(?:{NOT}|{ENDS}|{STARTS})\b).*\b(?:always|every|each|must|include|use|ask|add|put|contain)\b"
        rf"[\w ]*? (?:an?|some|1) (?:[\w-]+ )?(?:{noun})\b"
    )
