"""Whether a sentence of a card demands a thing, forbids it, or leaves it open.

Shared by all finders of instructions (:mod:`flywheel_tasks.evaluation.instructions`): what reads as a rule to one of
them must not read as its opposite to another.
"""

import re
from collections.abc import Callable

Test = Callable[[str], bool]
NOT = (
    r"(?:never|do not|no(?! matter| doubt| less| fewer| later| more than)|not|\w+n't|without|avoid|must not|cannot"
    r"|free of|skip|leave out|refrain from|steer clear of|stay away from|abstain from)"
)
ENDS = r"(?:end|finish|close|conclude|sign off)(?:s|es|ing)?"
STARTS = r"(?:start|begin|open)(?:s|ning|ing)?"
REPLY = r"(?:repl(?:y|ies)|answers?|messages?|responses?|turns?|texts?|posts?)"
# What an ending or a beginning may be of, so that it is one of the reply: "end [every one of your replies] with".
OBJECT = (
    r"(?: (?:every|each|all|any|your|the|an?|of|single|one|off|it|them|always|everything|you|say|write|sentences?"
    rf"|{REPLY}))"
)
_CONDITION = re.compile(
    r"\b(?:if|when|whenever|unless|until|sometimes|occasionally|except|rarely|seldom|often|usually|mostly|generally"
    r"|ideally|where possible|try|prefer)\b"
    r"|\bevery (?:other|second|third|few|now|so often)\b"
    r"|\b(?:first|last|opening|final) (?:repl|answer|message|response)"
    r"|\b(?:other than|apart from|aside from|excluding|with the exception)\b"
    r"|\bper (?:conversation|chat|session|day|week|scene|topic)\b"
    r"|\b(?:in|during) (?:(?!all|any|every)\w+ ){1,2}(?:moments|situations|scenes|occasions|contexts)\b"
)
# "At least once" and "once in every reply" are no conditions; "once he asks" and "once in a while" are.
_ONCE = re.compile(
    r"\bonce\b(?! (?:in|per|every|each) (?:(?:each|every|your|all|any|an?|of|the) )*(?:repl|answer|message|response))"
)
_AT_LEAST_ONCE = re.compile(
    r"\b(?:at least|exactly) once\b(?! (?:in|per|a|every|each) (?:\w+ )?(?:while|conversation|chat|day|week|session))"
)
# Two negations, or a negation of "only" and "always": what then is asked of every reply is unclear.
_TWICE = re.compile(
    r"\b(?:never|not|no|\w+n't|cannot|nobody|no one|nothing|none)\b(?:(?!\b(?:and|but|or)\b)[^.,;:])*"
    r"\b(?:without|fail|forget|miss|skip|omit|neglect|leave out|avoid|refrain|resist|hesitate|afraid|shy|mind|worry"
    r"|help but|wait to|stop|lack|only|just|always|necessarily|merely|any\w* (?:but|other than|besides))(?:ing|ting)?\b"
)
_OPEN = re.compile(
    r"\b(?:may|might|can|could)\b(?!'t| not\b| never\b| only\b)|\b(?:feel free|welcome|(?<!not )allowed|free) to\b"
)
_NEGATION = re.compile(rf"\b{NOT}\b")
_NOBODY = re.compile(r"\b(?:nobody|no one|none|nothing|neither)\b")
_CLAUSE = re.compile(r"[;.]|\bbut\b|\band (?:always|instead|do)\b")
_TOLD = re.compile(
    r"(?:^|[-–—•*,;:.()]|\b(?:you|always|never|not|\w+n't|must|should|shall|will|ever|and|or|nor|but|then|please|also|only"
    r"|just|even|still|somehow|somewhere|by|from|of|avoid|without|keep|cannot|frequently|constantly|regularly|casually"
    r"|explicitly|simply|(?:sure|remember|have|has|need|way|supposed|are|is) to"
    rf"|{REPLY}))\s*$"
)


def negated(test: Test) -> Test:
    """A test that passes where another fails."""
    return lambda reply: not test(reply)


def unclear(sentence: str) -> bool:
    """Whether a sentence, without what it quotes, has a condition or a double negation: no rule for every reply.

    Args:
        sentence: of a card.

    Returns:
        whether no finder may read it.
    """
    text = sentence.lower()
    condition = _CONDITION.search(text) or _ONCE.search(_AT_LEAST_ONCE.sub(" ", text))
    return bool(condition or _TWICE.search(text))


def left_open(sentence: str) -> bool:
    """Whether a sentence allows rather than demands ("you may", "feel free to").

    Args:
        sentence: of a card.

    Returns:
        whether only its upper limits bind.
    """
    return bool(_OPEN.search(sentence.lower()))


def is_told(before: str) -> bool:
    """Whether a verb is said to the character: "always say" is, "sailors say" and "ask him to say" are not.

    Args:
        before: the sentence up to the verb.
    """
    return bool(_TOLD.search(before.lower()))


def prohibited(lead: str) -> bool | None:
    """Whether what follows is forbidden.

    Args:
        lead: the sentence up to what is asked ("Keep it short, never").

    Returns:
        true for forbidden, false for demanded, None where the words leave it unclear ("never shout and end with").
    """
    clause = _CLAUSE.split(re.sub(r"\bnever,? ever\b,?", "never", lead.lower()))[-1]
    found = list(_NEGATION.finditer(clause))
    if not found:
        return None if _NOBODY.search(clause) else False
    rest = clause[found[-1].end() :]
    if ":" in rest:
        return None
    if re.match(r"\s*,", rest):  # "never, under any circumstances, …"
        return True
    if "," in rest:
        part = rest.rsplit(",", 1)[-1]
        if re.match(r"\s*n?or\b", part):
            return True
        # A list of things not to do ("never swear, use slang, or …") looks the same up to here.
        return False if re.match(r"\s*(?:and|then|always|just|only)\b", part) else None
    return None if re.search(r"\band\b", rest) else True
