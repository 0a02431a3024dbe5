"""Card instructions that code can check, found in their sentences by patterns.

The paper's metrics "instruction following" and "instruction violation" are judged here only where a rule of
the card can be counted or matched. A sentence no pattern understands is unchecked: it counts neither as
obeyed nor as broken. A condition ("if the user asks …") is never checked: code can't tell whether it holds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from flywheel_tasks.chat.card import Card
from flywheel_tasks.evaluation.counts import Limit, digits, limit
from flywheel_tasks.evaluation.facts import facts
from flywheel_tasks.evaluation.languages import LANGUAGES, is_in
from flywheel_tasks.style.text import cut_off, emoji_count, ending, has_list, sentences, straight, words

Test = Callable[[str], bool]


@dataclass(frozen=True)
class InstructionCheck:
    """One checkable thing that an instruction asks for.

    Attributes:
        instruction: the card's sentence.
        kind: what is checked, such as ``words`` or ``end_question``.
        test: whether a non-empty reply does it.
    """

    instruction: str
    kind: str
    test: Test = field(repr=False, compare=False)

    def obeyed(self, reply: str) -> bool:
        """Whether a reply obeys; an empty reply obeys nothing."""
        return bool(reply.strip()) and self.test(straight(reply))


def checks(card: Card) -> list[InstructionCheck]:
    """Everything code can check of a card's instructions, in the card's order."""
    return [check for instruction in card.instructions for check in instruction_checks(instruction)]


def share_kept(card: Card, reply: str) -> float | None:
    """Share (0 to 1) of a card's instructions that code can check and the reply obeys; None if code can check none."""
    kept = [check.obeyed(reply) for check in checks(card)]
    return sum(kept) / len(kept) if kept else None


def unchecked(card: Card) -> list[str]:
    """The card's instructions of which code can check nothing."""
    return [instruction for instruction in card.instructions if not instruction_checks(instruction)]


def instruction_checks(instruction: str) -> list[InstructionCheck]:
    """What code can check of one instruction; "at most 20 words, no emoji" makes two checks."""
    original = straight(instruction)
    found: dict[str, Test] = {}
    for sentence in re.split(r"(?<=[.!;])\s+(?=[A-Z])", original):
        if _CONDITION.search(sentence.lower()):
            continue
        for finder in (_counted, _endings, _letters, _quoted, _bare_words, _language, _grammar, facts):
            for kind, test in finder(sentence).items():
                found.setdefault(kind, test)
    return [InstructionCheck(instruction, kind, test) for kind, test in found.items()]


_CONDITION = re.compile(
    r"\b(?:if|when|whenever|unless|until|once|sometimes|occasionally|except)\b|\b(?:try|prefer)\b"
)
_NOT = (
    r"(?:never|do not|don't|no|not|without|avoid|must not|mustn't|cannot|can't|free of|skip|leave out"
    r"|refrain from|steer clear of|stay away from|abstain from)"
)
_ENDS = r"(?:end|finish|close|conclude|sign off)(?:s|es|ing)?"
_STARTS = r"(?:start|begin|open)(?:s|ning|ing)?"
_COUNTERS: dict[str, tuple[str, Callable[[str], int]]] = {
    "words": (r"words?", lambda reply: len(words(reply))),
    "sentences": (r"sentences?", sentences),
    "emoji": (r"emojis?|emoticons?", emoji_count),
    "exclamation_marks": (r"exclamations?(?: (?:mark|point)s?)?", lambda reply: reply.count("!")),
    "questions": (r"questions?(?: marks?)?", lambda reply: len(re.findall(r"\?+", reply))),
    "digits": (r"digits?|numerals?", lambda reply: sum(c.isdigit() for c in reply)),
    "lines": (r"lines?|paragraphs?", lambda reply: len([x for x in reply.splitlines() if x.strip()])),
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


def _counted(sentence: str) -> dict[str, Test]:
    """Limits on counts, "never use X" and "always use a X"."""
    text = digits(re.sub(r'"[^"]*"|(?<!\w)\'[^\']*\'(?!\w)', " ", sentence.lower()))
    found: dict[str, Test] = {}
    for name, (noun, count) in _COUNTERS.items():
        bound = limit(text, noun)
        if bound is None and name in _NEVER and re.search(_never(noun), text):
            bound = Limit(high=0)
        if bound is None and name in _PRESENT and re.search(_always(noun), text):
            bound = Limit(low=1)
        if bound is not None:
            found[name] = _within(bound, count)
    return found


def _within(bound: Limit, count: Callable[[str], int]) -> Test:
    return lambda reply: bound.holds(count(reply))


def _never(noun: str) -> str:
    """Pattern of "never use emoji", "no lists or emoji", "avoid exclamation marks"."""
    return (
        rf"\b{_NOT}\b(?! (?:end|finish|close|start|begin|open)\b)"
        rf"(?: (?!but\b|and (?:always|use|end)\b)[\w'/-]+,?){{0,6}}? (?:{noun})\b"
    )


def _always(noun: str) -> str:
    """Pattern of "always ask a question", "include an emoji"; an ending is another check."""
    return (
        rf"^(?!.*\b(?:{_NOT}|{_ENDS}|{_STARTS})\b).*\b(?:always|every|each|must|include|use|ask|add|put|contain)\b"
        rf"[\w ]*? (?:an?|some|the|1) (?:[\w-]+ )?(?:{noun})\b"
    )


def _endings(sentence: str) -> dict[str, Test]:
    """Endings and beginnings: "never end with a question", "finish by asking something back"."""
    text = sentence.lower()
    last = rf"\b(?:{_ENDS})\b[^.;\"]*?"
    marks: tuple[tuple[str, str, Test], ...] = (
        ("end_question", r"(?:question|asking)", lambda reply: ending(reply).endswith("?")),
        ("end_exclamation", r"exclamation", lambda reply: ending(reply).endswith("!")),
        (
            "end_ellipsis",
            r"(?:ellipsis|three dots|\.\.\.)",
            lambda reply: ending(reply).endswith(("...", "…")),
        ),
        ("end_emoji", r"(?:emoji|emoticon)", lambda reply: _edge_emoji(reply, first=False)),
        ("end_full_stop", r"(?:full stop|period)", lambda reply: ending(reply).endswith(".")),
    )
    found: dict[str, Test] = {}
    for kind, thing, test in marks:
        if re.search(rf"\b{_NOT} (?:\w+ )?{_ENDS}\b[^.;]*?{thing}", text):
            found[kind] = _negated(test)
        elif re.search(last + thing, text):
            found[kind] = test
    if re.search(rf"\b{_STARTS}\b[^.;\"]*?\b(?:emoji|emoticon)", text):
        found["start_emoji"] = lambda reply: _edge_emoji(reply, first=True)
    if re.search(r"\b(?:complete|full|whole) sentences?\b|\bfinish (?:your|every|each) sentences?", text):
        found["complete"] = lambda reply: not cut_off(reply)
    return found


def _negated(test: Test) -> Test:
    return lambda reply: not test(reply)


def _edge_emoji(reply: str, *, first: bool) -> bool:
    text = reply.strip()
    stripped = text.rstrip(".!?… ")
    return emoji_count(text[:2]) > 0 if first else emoji_count(stripped[-2:]) > 0


def _letters(sentence: str) -> dict[str, Test]:
    """Lower case only, upper case only, no capitals."""
    text = sentence.lower()
    if re.search(rf"\b{_NOT}\b[\w' ]*\b(?:capital(?:s|ised|ized| letters?)?|upper ?-?case)\b", text):
        return {"lower_case": lambda reply: reply == reply.lower()}
    if re.search(rf"\b{_NOT}\b[\w' ]*\blower ?-?case\b", text):
        return {"upper_case": lambda reply: reply == reply.upper()}
    if re.search(r"\blower ?-?case\b|\bsmall letters\b", text):
        return {"lower_case": lambda reply: reply == reply.lower()}
    if re.search(
        r"\b(?:all|only|in|entirely)\b[\w ]*\b(?:capitals|caps|capital letters|upper ?-?case)\b", text
    ):
        return {"upper_case": lambda reply: reply == reply.upper()}
    return {}


_LANGUAGE = re.compile(
    rf"\b(?:in|speak|use|using|write|to) (?:\w+ ){{0,2}}?({'|'.join(LANGUAGES)})\b", re.IGNORECASE
)


def _language(sentence: str) -> dict[str, Test]:
    """A language to answer in, or never to use: "Reply only in French", "never use English"."""
    found: dict[str, Test] = {}
    for match in _LANGUAGE.finditer(sentence):
        language = match.group(1).lower()
        if re.search(r"\bwords?\b|\bphrases?\b|\baccent\b|\bsometimes\b", sentence.lower()):
            continue  # a word of a language is not the language
        prohibited = (
            re.search(rf"\b{_NOT}\b[\w' ]*$", sentence[: match.end(0) - len(language)].lower()) is not None
        )
        test = _in_language(language)
        found[f"{'not_' if prohibited else ''}language:{language}"] = _negated(test) if prohibited else test
    return found


def _in_language(language: str) -> Test:
    return lambda reply: is_in(reply, language)


_CONTRACTION = re.compile(
    r"\b\w+(?:n't|'(?:m|re|ve|ll|d))\b|\b(?:it|that|he|she|there|what|who|let)'s\b", re.IGNORECASE
)
_FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|myself|I'(?:m|ve|ll|d))\b")


def _grammar(sentence: str) -> dict[str, Test]:
    """No contractions; speaking of oneself in the third person."""
    text = sentence.lower()
    found: dict[str, Test] = {}
    if re.search(rf"\b{_NOT}\b[\w' ]*\bcontractions?\b", text):
        found["no_contractions"] = lambda reply: _CONTRACTION.search(reply) is None
    if re.search(r"\bin (?:the )?third[- ]person\b", text) and not re.search(rf"\b{_NOT}\b", text):
        found["third_person"] = lambda reply: _FIRST_PERSON.search(reply) is None
    return found


_QUOTE = re.compile(r'"([^"]+)"|(?<![\w])\'((?:[^\']|(?<=\w)\'(?=\w))+)\'(?!\w)|\*([^*]+)\*')


def _quoted(sentence: str) -> dict[str, Test]:
    """A quoted word or phrase that must, or must not, be said, or start or end the reply."""
    found: dict[str, Test] = {}
    before = 0
    prohibited = False
    for match in _QUOTE.finditer(sentence):
        phrase = next(group for group in match.groups() if group is not None).strip(" ,.")
        lead = sentence[before : match.start()].lower()
        if not re.fullmatch(r",?\s*(?:or|and|nor)?\s*(?:the words? )?", lead):
            prohibited = re.search(rf"\b{_NOT}\b", lead) is not None
        before = match.end()
        if not phrase:
            continue
        kind, test = _phrase_test(phrase, lead)
        if prohibited:
            kind, test = f"not_{kind}", _negated(test)
        found[f"{kind}:{phrase.lower()}"] = test
    return found


def _phrase_test(phrase: str, lead: str) -> tuple[str, Test]:
    if re.search(rf"\b{_STARTS}\b", lead):
        return "start", lambda reply: bool(re.match(rf"[\W_]*{_phrase(phrase)}", reply, re.IGNORECASE))
    if re.search(rf"\b(?:{_ENDS})\b", lead):
        return "end", lambda reply: bool(re.search(rf"{_phrase(phrase)}[\W_]*$", reply, re.IGNORECASE))
    return "mention", lambda reply: bool(re.search(_phrase(phrase), reply, re.IGNORECASE))


def _phrase(phrase: str) -> str:
    """The phrase as whole words, any spaces, and a plural ending."""
    body = r"\s+".join(re.escape(part) for part in phrase.split())
    plural = "(?:e?s)?" if phrase[-1:].isalpha() and len(phrase) > 2 else ""
    return rf"(?<!\w){body}{plural}(?!\w)"


_MENTION = re.compile(
    r"\b(?:mention|mentions|mentioning|refer to|say|use) (?:the word |(?:the|your|a|an) )?([\w-]+)"
    r"(?= (?:in|at|once|every|each|somewhere|exactly)\b|\s*[.,;!]|\s*$)",
)
_VAGUE = re.compile(
    r"it|them|that|this|(?:some|any)(?:thing|one)|names?|user|yourself|words?|language|slang|emojis?|questions?|place"
    r"|colou?r|smell|fact|sentences?|lists?|digits?|numbers?|case|exclamation|marks|punctuation|lowercase|letters"
    r"|formal|humou?r|rhymes?|metaphors?|things?"
)


def _bare_words(sentence: str) -> dict[str, Test]:
    """One word without quotes: "always mention the sea", "never use the word very"."""
    if _QUOTE.search(sentence):
        return {}
    text = sentence.lower()
    found: dict[str, Test] = {}
    for match in _MENTION.finditer(text):
        verb, word = match.group().split()[0], match.group(1)
        named = "the word " in match.group()
        if _VAGUE.fullmatch(word) or (verb in {"say", "use"} and not named):
            continue
        prohibited = re.search(rf"\b{_NOT}\b[\w' ]*$", text[: match.start()]) is not None
        _, test = _phrase_test(word, "")
        kind = "not_mention" if prohibited else "mention"
        found[f"{kind}:{word}"] = _negated(test) if prohibited else test
    return found
